#include "kernels/cuda/linear.h"

#include <algorithm>

#include "kernels/expert_ffn.h"
#include "kernels/linear.h"
#include "tests/kernels/cuda/cuda_test_support.h"
#include "tests/kernels/cuda/weights_test_support.h"

namespace conclave::cuda {
namespace {

using testing::FloatNear;
using testing::HasSubstr;
using testing::Pointwise;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

class CudaLinearTest : public CudaTest {
 protected:
  DeviceMatrix Upload(const HostMatrices& host) {
    DeviceMatrix matrix{.format = host.format,
                        .out_features = host.out_features,
                        .in_features = host.in_features,
                        .num_matrices = host.count};
    if (host.format == WeightFormat::kBf16) {
      matrix.values = CudaTest::Upload(host.bf16);
    } else {
      matrix.values = CudaTest::Upload(host.fp8);
      matrix.scales = CudaTest::Upload(host.scales);
    }
    return matrix;
  }

  std::vector<float> Multiply(const std::vector<BFloat16>& input, const DeviceMatrix& weight,
                              GemmKernel kernel, const std::vector<float>* residual = nullptr) {
    const auto rows = static_cast<int64_t>(input.size()) / weight.in_features;
    const size_t size = rows * weight.out_features;
    float* const out = residual == nullptr ? Empty<float>(size) : CudaTest::Upload(*residual);
    EXPECT_OK(Linear({.input = CudaTest::Upload(input),
                      .weight = weight,
                      .output = out,
                      .num_rows = rows,
                      .accumulate = residual != nullptr,
                      .kernel = kernel},
                     stream()));
    return Download(out, size);
  }
};

// Out features around 16 and 128, in features around eighths of whole 32s, rows around 8, 16, 32
// and 64.
TEST_F(CudaLinearTest, BothKernelsMatchReferenceAndEachOther) {
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8Block128}) {
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{1, 32},
                                  {15, 64},
                                  {16, 256},
                                  {17, 288},
                                  {129, 544},
                                  {300, 96}}) {
      const HostMatrices host = RandomMatrices(format, 1, out, in, FreshSeed(out * in));
      const DeviceMatrix weight = Upload(host);
      const PackedMatrix packed = host.Packed(0);
      for (const int64_t rows : {0, 1, 7, 8, 9, 17, 33, 65}) {
        const std::vector<BFloat16> input = RandomBf16(rows * in, FreshSeed(rows));
        std::vector<float> expected(rows * out);
        ASSERT_OK(LinearReference({.input = input.data(),
                                   .weight = &packed,
                                   .output = expected.data(),
                                   .num_rows = rows}));
        const std::vector<float> skinny = Multiply(input, weight, GemmKernel::kSkinny);
        // The terms of a sum add up in size to sqrt(in) = 24 at most, in another order: 544 * 2^-24
        // of it is the worst case, 8e-4; they are random, so a tenth of it is plenty.
        EXPECT_THAT(skinny, Pointwise(FloatNear(8e-5f), expected)) << out << " x " << in;
        EXPECT_TRUE(SameBits(Multiply(input, weight, GemmKernel::kTiled), skinny))
            << out << " x " << in << ", " << rows << " rows";
      }
    }
  }
}

// Features around 64, 128 and 256, k around 16, 64 and the stages under way, rows around 8 and 128.
TEST_F(CudaLinearTest, WgmmaIsNearToTheOthers) {
  ASSERT_OK_AND_ASSIGN(const DeviceInfo info, QueryDevice(0));
  if (info.compute_major != 9) GTEST_SKIP() << "SKIPPED: needs a Hopper GPU";
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8Block128}) {
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{1, 32},
                                  {63, 64},
                                  {65, 96},
                                  {130, 352},
                                  {257, 160},
                                  {513, 544}}) {
      const DeviceMatrix weight = Upload(RandomMatrices(format, 1, out, in, FreshSeed(out * in)));
      for (const int64_t rows : {0, 1, 9, 127, 130}) {
        const std::vector<BFloat16> input = RandomBf16(rows * in, FreshSeed(rows));
        const std::vector<float> residual = RandomNormal(rows * out, FreshSeed(3));
        for (const std::vector<float>* const onto :
             {static_cast<const std::vector<float>*>(nullptr), &residual}) {
          // As above: the same terms, in another order.
          EXPECT_THAT(
              Multiply(input, weight, GemmKernel::kWgmma, onto),
              Pointwise(FloatNear(8e-5f), Multiply(input, weight, GemmKernel::kSkinny, onto)))
              << out << " x " << in << ", " << rows << " rows";
        }
      }
    }
  }
}

TEST_F(CudaLinearTest, ARowDoesNotDependOnTheOthers) {
  const int64_t out = 48, in = 320;
  const DeviceMatrix weight = Upload(RandomMatrices(WeightFormat::kBf16, 1, out, in, FreshSeed(1)));
  const std::vector<BFloat16> input = RandomBf16(70 * in, FreshSeed(2));
  const std::vector<float> whole = Multiply(input, weight, GemmKernel::kAuto);
  for (const int64_t rows : {1, 5, 12, 31, 34}) {
    for (int64_t first : {int64_t{0}, 70 - rows}) {
      const std::vector<BFloat16> part(input.begin() + first * in,
                                       input.begin() + (first + rows) * in);
      const std::vector<float> expected(whole.begin() + first * out,
                                        whole.begin() + (first + rows) * out);
      EXPECT_TRUE(SameBits(Multiply(part, weight, GemmKernel::kAuto), expected)) << rows;
    }
  }
}

TEST_F(CudaLinearTest, AccumulatesOntoTheResidual) {
  const int64_t out = 40, in = 64, rows = 3;
  const DeviceMatrix weight = Upload(RandomMatrices(WeightFormat::kBf16, 1, out, in, FreshSeed(1)));
  const std::vector<BFloat16> input = RandomBf16(rows * in, FreshSeed(2));
  const std::vector<float> residual = RandomNormal(rows * out, FreshSeed(3));
  std::vector<float> expected = Multiply(input, weight, GemmKernel::kSkinny);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] = residual[i] + expected[i];
  for (const GemmKernel kernel : {GemmKernel::kSkinny, GemmKernel::kTiled}) {
    EXPECT_TRUE(SameBits(Multiply(input, weight, kernel, &residual), expected));
  }
}

// Each byte once: what it is widened to is what the host widens it to, NaN included.
TEST_F(CudaLinearTest, EveryFp8ValueIsWidenedToTheSameBits) {
  HostMatrices host{WeightFormat::kFp8Block128, 256, 32, 1, {}, {}, {0.37f, 1.9f}};
  host.fp8.assign(256 * 32, 0);
  for (int row = 0; row < 256; ++row) host.fp8[row * 32 + row % 32] = static_cast<uint8_t>(row);
  const DeviceMatrix weight = Upload(host);
  std::vector<BFloat16> input(32 * 32);
  for (int i = 0; i < 32; ++i) input[i * 32 + i] = ToBFloat16(1);
  ASSERT_OK_AND_ASSIGN(const DeviceInfo info, QueryDevice(0));
  for (const GemmKernel kernel : {GemmKernel::kSkinny, GemmKernel::kTiled, GemmKernel::kWgmma}) {
    if (kernel == GemmKernel::kWgmma && info.compute_major != 9) continue;
    const std::vector<float> actual = Multiply(input, weight, kernel);
    for (int row = 0; row < 256; ++row) {
      const float expected =
          ToFloat(ToBFloat16(E4M3ToFloat(static_cast<uint8_t>(row)) * host.scales[row / 128]));
      const float value = actual[row % 32 * 256 + row];
      EXPECT_TRUE(value == expected || (std::isnan(value) && std::isnan(expected))) << row;
    }
  }
}

class CudaExpertFfnTest : public CudaLinearTest {
 protected:
  struct Pairs {
    std::vector<int32_t> rows;
    std::vector<int32_t> offsets;
  };

  std::vector<BFloat16> Run(const std::vector<BFloat16>& hidden_states, const Pairs& pairs,
                            const HostMatrices& gate_up, const HostMatrices& down,
                            GemmKernel kernel, int64_t slack = 0, bool may_use_wgmma = false) {
    const auto num_pairs = static_cast<int64_t>(pairs.rows.size());
    const int64_t max_pairs = num_pairs + slack;
    BFloat16* const out = Empty<BFloat16>(max_pairs * gate_up.in_features);
    EXPECT_OK(ExpertFfn({.hidden_states = CudaTest::Upload(hidden_states),
                         .pair_rows = CudaTest::Upload(pairs.rows),
                         .expert_offsets = CudaTest::Upload(pairs.offsets),
                         .gate_up_proj = Upload(gate_up),
                         .down_proj = Upload(down),
                         .intermediate = Empty<BFloat16>(max_pairs * down.in_features),
                         .output = out,
                         .max_pairs = max_pairs,
                         .kernel = kernel,
                         .may_use_wgmma = may_use_wgmma},
                        stream()));
    return Download(out, num_pairs * gate_up.in_features);
  }
};

TEST_F(CudaExpertFfnTest, KernelsMatchReferenceAndEachOther) {
  ASSERT_OK_AND_ASSIGN(const DeviceInfo info, QueryDevice(0));
  struct Case {
    WeightFormat format;
    int64_t hidden, width;
    std::vector<int> counts;  // pairs of each expert
  };
  for (const Case& c :
       {Case{WeightFormat::kBf16, 64, 32, {0, 1, 0, 9}}, Case{WeightFormat::kBf16, 96, 160, {70}},
        Case{WeightFormat::kBf16, 32, 64, {0, 0, 0}},
        // More features, rows and k than one thread block of wgmma has.
        Case{WeightFormat::kBf16, 288, 160, {130, 0, 3}},
        Case{WeightFormat::kFp8Block128, 288, 256, {130, 0, 3}},
        Case{WeightFormat::kFp8Block128, 160, 128, {3, 0, 17, 66, 1}},
        // More experts than a warp has lanes: the search for a tile takes a second round.
        Case{WeightFormat::kBf16, 32, 32, std::vector<int>(40, 2)}}) {
    const int num_experts = static_cast<int>(c.counts.size());
    Pairs pairs{{}, {0}};
    std::mt19937_64 generator(FreshSeed(9));
    const int64_t num_rows = 20;
    for (const int count : c.counts) {
      for (int i = 0; i < count; ++i) {
        pairs.rows.push_back(static_cast<int32_t>(generator() % num_rows));
      }
      pairs.offsets.push_back(static_cast<int32_t>(pairs.rows.size()));
    }
    const HostMatrices gate_up =
        RandomMatrices(c.format, num_experts, 2 * c.width, c.hidden, FreshSeed(1));
    const HostMatrices down =
        RandomMatrices(c.format, num_experts, c.hidden, c.width, FreshSeed(2));
    const std::vector<BFloat16> hidden_states = RandomBf16(num_rows * c.hidden, FreshSeed(3));

    std::vector<ExpertWeights> weights(num_experts);
    std::vector<ExpertGroup> groups;
    for (int e = 0; e < num_experts; ++e) {
      weights[e].gate_up_proj = gate_up.Packed(e);
      weights[e].down_proj = down.Packed(e);
      groups.push_back({&weights[e], pairs.offsets[e], c.counts[e]});
    }
    const std::vector<uint32_t> pair_rows(pairs.rows.begin(), pairs.rows.end());
    std::vector<BFloat16> expected(pair_rows.size() * c.hidden);
    ExpertFfnWorkspace workspace;
    ASSERT_OK(ExpertFfnReference({.hidden_states = hidden_states.data(),
                                  .pair_rows = pair_rows,
                                  .groups = groups,
                                  .output = expected.data(),
                                  .num_rows = num_rows,
                                  .hidden_size = c.hidden,
                                  .moe_intermediate_size = c.width,
                                  .workspace = &workspace}));
    const std::vector<BFloat16> skinny =
        Run(hidden_states, pairs, gate_up, down, GemmKernel::kSkinny);
    // An intermediate value next to a tie rounds the other way: 2^-8 of one of `width` terms of
    // size up to 0.5, a few of them: 160 terms of 2^-9 / sqrt(160) in random directions are 2e-3.
    EXPECT_TRUE(NearBf16(skinny, expected, 4e-3f)) << c.hidden << " x " << c.width;
    EXPECT_TRUE(SameBits(Run(hidden_states, pairs, gate_up, down, GemmKernel::kTiled), skinny));
    // A launch for more pairs than there are, as a graph's bucket makes it.
    EXPECT_TRUE(SameBits(Run(hidden_states, pairs, gate_up, down, GemmKernel::kAuto, 50), skinny));
    if (info.compute_major != 9) continue;
    const std::vector<BFloat16> wgmma =
        Run(hidden_states, pairs, gate_up, down, GemmKernel::kWgmma);
    EXPECT_TRUE(NearBf16(wgmma, expected, 4e-3f)) << c.hidden << " x " << c.width;
    // What is chosen for 65 pairs an expert, if it may be.
    const int64_t slack = 65 * num_experts - static_cast<int64_t>(pairs.rows.size());
    if (slack < 0) continue;
    EXPECT_TRUE(
        SameBits(Run(hidden_states, pairs, gate_up, down, GemmKernel::kAuto, slack, true), wgmma));
    if (slack > 0) {
      EXPECT_TRUE(SameBits(
          Run(hidden_states, pairs, gate_up, down, GemmKernel::kAuto, slack - 1, true), skinny));
    }
  }
}

TEST_F(CudaLinearTest, RefusesBadArguments) {
  DeviceLinearArgs args;
  args.weight = {.values = this, .out_features = 4, .in_features = 40};
  args.num_rows = 1;
  EXPECT_THAT(Linear(args, stream()),
              StatusIs(kInvalid, HasSubstr("weight.in_features is 40, want a multiple of 32")));
  args.weight.in_features = 64;
  EXPECT_THAT(Linear(args, stream()), StatusIs(kInvalid, HasSubstr("input is null")));
  args.num_rows = -1;
  EXPECT_THAT(Linear(args, stream()), StatusIs(kInvalid, HasSubstr("num_rows is -1")));
  args.weight.format = WeightFormat::kFp8Block128;
  EXPECT_THAT(Linear(args, stream()), StatusIs(kInvalid, HasSubstr("weight.scales is null")));
  args.weight.values = nullptr;
  EXPECT_THAT(Linear(args, stream()), StatusIs(kInvalid, HasSubstr("weight.values is null")));

  DeviceExpertFfnArgs ffn;
  ffn.gate_up_proj = {.values = this, .out_features = 128, .in_features = 32};
  ffn.down_proj = {.values = this, .out_features = 32, .in_features = 32};
  EXPECT_THAT(ExpertFfn(ffn, stream()),
              StatusIs(kInvalid, HasSubstr("gate_up_proj.out_features is 128, want 64..64")));
  const float scale = 1;
  for (DeviceMatrix* const matrix : {&ffn.gate_up_proj, &ffn.down_proj}) {
    matrix->format = WeightFormat::kFp8Block128;
    matrix->scales = &scale;
  }
  ffn.gate_up_proj.out_features = 64;
  EXPECT_THAT(ExpertFfn(ffn, stream()),
              StatusIs(kInvalid, HasSubstr("in FP8 is 32, want a multiple of 128")));
}

}  // namespace
}  // namespace conclave::cuda
