#include "kernels/cuda/rows.h"

#include <algorithm>
#include <numeric>

#include "kernels/moe_combine.h"
#include "tests/kernels/cuda/cuda_test_support.h"

namespace conclave::cuda {
namespace {

using testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
// Around a warp and around a thread block of 256.
constexpr int64_t kWidths[] = {1, 31, 32, 33, 255, 256, 257, 2048};

using CudaRowsTest = CudaTest;

TEST_F(CudaRowsTest, EmbeddingCopiesRows) {
  for (const int64_t hidden : kWidths) {
    const std::vector<BFloat16> table = RandomBf16(7 * hidden, FreshSeed(hidden));
    for (const std::vector<uint32_t>& ids :
         {std::vector<uint32_t>{}, {6}, {0, 6, 3, 3, 1, 0, 2, 5, 4}}) {
      const auto rows = static_cast<int64_t>(ids.size());
      float* const out = Empty<float>(rows * hidden);
      ASSERT_OK(Embedding({.ids = Upload(ids),
                           .table = Upload(table),
                           .residual = out,
                           .num_tokens = rows,
                           .hidden_size = hidden},
                          stream()));
      const std::vector<float> actual = Download(out, rows * hidden);
      for (int64_t i = 0; i < rows * hidden; ++i) {
        ASSERT_EQ(actual[i], ToFloat(table[ids[i / hidden] * hidden + i % hidden]));
      }
    }
  }
}

TEST_F(CudaRowsTest, RmsNormMatchesReference) {
  for (const int64_t hidden : kWidths) {
    for (const int64_t rows : {0, 1, 5}) {
      const std::vector<float> input = RandomNormal(rows * hidden, FreshSeed(hidden + rows), 3);
      const std::vector<float> weight = RandomNormal(hidden, FreshSeed(hidden));
      std::vector<BFloat16> expected(rows * hidden);
      RmsNormArgs args{.input = input.data(),
                       .weight = weight.data(),
                       .output = expected.data(),
                       .num_rows = rows,
                       .hidden_size = hidden};
      ASSERT_OK(RmsNormReference(args));
      args.input = Upload(input);
      args.weight = Upload(weight);
      args.output = Empty<BFloat16>(rows * hidden);
      ASSERT_OK(RmsNorm(args, nullptr, stream()));
      const std::vector<BFloat16> actual = Download(args.output, rows * hidden);
      // Sums of 2048 squares in another order: 2048 * 2^-24 relative, below a step of BF16.
      EXPECT_TRUE(NearBf16(actual, expected, 1e-6f)) << hidden << " x " << rows;
      // Any rows, in any order, each as in the whole.
      std::vector<int64_t> row_ids(rows);
      std::iota(row_ids.rbegin(), row_ids.rend(), 0);
      args.output = Empty<BFloat16>(rows * hidden);
      ASSERT_OK(RmsNorm(args, Upload(row_ids), stream()));
      const std::vector<BFloat16> reversed = Download(args.output, rows * hidden);
      for (int64_t row = 0; row < rows; ++row) {
        EXPECT_TRUE(std::equal(actual.begin() + row * hidden, actual.begin() + (row + 1) * hidden,
                               reversed.begin() + (rows - 1 - row) * hidden));
      }
    }
  }
}

TEST_F(CudaRowsTest, SwiGluMatchesReference) {
  for (const int64_t width : kWidths) {
    for (const int64_t rows : {0, 1, 5}) {
      std::vector<float> gate_up = RandomNormal(rows * 2 * width, FreshSeed(width + rows), 4);
      if (rows > 0) gate_up[0] = -200;  // e^200 is infinite: silu must be 0, not NaN
      std::vector<BFloat16> expected(rows * width);
      SwiGluArgs args{.gate_up = gate_up.data(),
                      .output = expected.data(),
                      .num_rows = rows,
                      .intermediate_size = width};
      ASSERT_OK(SwiGluReference(args));
      args.gate_up = Upload(gate_up);
      args.output = Empty<BFloat16>(rows * width);
      ASSERT_OK(SwiGlu(args, stream()));
      // exp to 2 ulp: below a step of BF16.
      EXPECT_TRUE(NearBf16(Download(args.output, rows * width), expected, 1e-6f));
    }
  }
}

TEST_F(CudaRowsTest, CombineMatchesReference) {
  for (const int64_t hidden : kWidths) {
    for (const auto& [tokens, top_k] : {std::pair<int64_t, int>{0, 2}, {1, 1}, {5, 8}}) {
      const int64_t pairs = tokens * top_k;
      const std::vector<BFloat16> rows = RandomBf16(pairs * hidden, FreshSeed(hidden));
      const std::vector<float> weights = RandomNormal(pairs, FreshSeed(hidden + 1));
      const std::vector<float> residual = RandomNormal(tokens * hidden, FreshSeed(hidden + 2));
      std::vector<int32_t> pair_of_slot(pairs);
      std::iota(pair_of_slot.begin(), pair_of_slot.end(), 0);
      std::shuffle(pair_of_slot.begin(), pair_of_slot.end(), std::mt19937_64(FreshSeed(3)));
      std::vector<const BFloat16*> pointers;
      for (const int32_t pair : pair_of_slot) pointers.push_back(rows.data() + pair * hidden);
      std::vector<float> expected = residual;
      ASSERT_OK(MoeCombineReference({.expert_rows = pointers.data(),
                                     .topk_weights = weights.data(),
                                     .residual = expected.data(),
                                     .num_tokens = tokens,
                                     .num_experts_per_tok = top_k,
                                     .hidden_size = hidden}));
      float* const out = Upload(residual);
      ASSERT_OK(Combine({.expert_rows = Upload(rows),
                         .pair_of_slot = Upload(pair_of_slot),
                         .topk_weights = Upload(weights),
                         .residual = out,
                         .num_tokens = tokens,
                         .num_experts_per_tok = top_k,
                         .hidden_size = hidden},
                        stream()));
      // Products may be fused with sums: 9 terms below 20, 9 * 20 * 2^-24 = 1e-5.
      EXPECT_THAT(Download(out, tokens * hidden),
                  testing::Pointwise(testing::FloatNear(1.1e-5f), expected));
    }
  }
}

TEST_F(CudaRowsTest, CombineLeavesPaddingAlone) {
  const std::vector<float> residual = RandomNormal(2 * 40, FreshSeed(1));
  float* const out = Upload(residual);
  ASSERT_OK(Combine({.expert_rows = Upload(RandomBf16(2 * 40, FreshSeed(2))),
                     .pair_of_slot = Upload(std::vector<int32_t>{0, 1, -1, -1}),
                     .topk_weights = Upload(std::vector<float>{1, 1, 1, 1}),
                     .residual = out,
                     .num_tokens = 2,
                     .num_experts_per_tok = 2,
                     .hidden_size = 40},
                    stream()));
  const std::vector<float> actual = Download(out, 80);
  EXPECT_FALSE(std::equal(residual.begin(), residual.begin() + 40, actual.begin()));
  EXPECT_TRUE(std::equal(residual.begin() + 40, residual.end(), actual.begin() + 40));
}

// The same rows, all in one array or some in the other: the same bits.
TEST_F(CudaRowsTest, CombineTakesRowsFromTwoPlaces) {
  const int64_t hidden = 300;
  const std::vector<BFloat16> rows = RandomBf16(4 * hidden, FreshSeed(2));
  const std::vector<float> residual = RandomNormal(2 * hidden, FreshSeed(1));
  CombineArgs args{.expert_rows = Upload(rows),
                   .pair_of_slot = Upload(std::vector<int32_t>{2, 0, 3, 1}),
                   .topk_weights = Upload(std::vector<float>{0.5f, 0.25f, 0.75f, 0.125f}),
                   .residual = Upload(residual),
                   .num_tokens = 2,
                   .num_experts_per_tok = 2,
                   .hidden_size = hidden};
  ASSERT_OK(Combine(args, stream()));
  const std::vector<float> expected = Download(args.residual, 2 * hidden);
  // Rows 0 and 3 are elsewhere, the other way round: none of the first token's first.
  std::vector<BFloat16> others(rows.end() - hidden, rows.end());
  others.insert(others.end(), rows.begin(), rows.begin() + hidden);
  args.expert_rows = Upload(std::vector<BFloat16>(rows.begin() + hidden, rows.end() - hidden));
  args.pair_of_slot = Upload(std::vector<int32_t>{1, -1, -1, 0});
  args.other_rows = Upload(others);
  args.other_of_slot = Upload(std::vector<int32_t>{-1, 1, 0, -1});
  args.residual = Upload(residual);
  ASSERT_OK(Combine(args, stream()));
  EXPECT_EQ(Download(args.residual, 2 * hidden), expected);
}

TEST_F(CudaRowsTest, RefusesBadArguments) {
  EXPECT_THAT(Embedding({.num_tokens = -1, .hidden_size = 4}, stream()),
              StatusIs(kInvalid, HasSubstr("rows is -1")));
  EXPECT_THAT(Embedding({.num_tokens = 1, .hidden_size = 4}, stream()),
              StatusIs(kInvalid, HasSubstr("ids is null")));
  EXPECT_THAT(RmsNorm({.num_rows = 1, .hidden_size = 0}, nullptr, stream()),
              StatusIs(kInvalid, HasSubstr("row width is 0")));
  EXPECT_THAT(SwiGlu({.num_rows = 1, .intermediate_size = 4}, stream()),
              StatusIs(kInvalid, HasSubstr("gate_up is null")));
  EXPECT_THAT(Combine({.num_tokens = 1, .num_experts_per_tok = 0, .hidden_size = 4}, stream()),
              StatusIs(kInvalid, HasSubstr("num_experts_per_tok is 0")));
}

}  // namespace
}  // namespace conclave::cuda
