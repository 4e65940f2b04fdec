// RmsNorm, SwiGlu and MoeCombine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cpu/plain_exp.h"
#include "kernels/moe_combine.h"
#include "kernels/rms_norm.h"
#include "kernels/swiglu.h"
#include "tests/kernels/kernel_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
const std::vector<int64_t> kSizes = {1, 2, 15, 16, 17, 31, 48, 64, 65, 100, 128, 1000};

std::vector<float> Floats(const std::vector<BFloat16>& values) {
  std::vector<float> floats;
  for (const BFloat16 value : values) floats.push_back(ToFloat(value));
  return floats;
}

TEST(PlainExpTest, IsWithinTwoUlpOfTheTrueValue) {
  for (float x = -87.2f; x < 88.2f; x += 0.0137f) {
    const double expected = std::exp(static_cast<double>(x));
    ASSERT_NEAR(cpu::PlainExp(x), expected, expected * 0x1p-22) << x;
  }
  EXPECT_EQ(cpu::PlainExp(0), 1);
  EXPECT_EQ(cpu::PlainExp(-1000), 0);
  EXPECT_EQ(cpu::PlainExp(-INFINITY), 0);
  EXPECT_EQ(cpu::PlainExp(1000), INFINITY);
  EXPECT_TRUE(std::isnan(cpu::PlainExp(NAN)));
}

TEST(PlainExpTest, ARowIsTheSameAsItsElements) {
  const std::vector<float> x = RandomNormal(50, 3, 10);
  std::vector<float> y(50);
  cpu::PlainExpRow(x.data(), 50, 2, 0.5f, y.data());
  for (int i = 0; i < 50; ++i) EXPECT_EQ(y[i], cpu::PlainExp((x[i] - 2) * 0.5f));
}

std::vector<BFloat16> RunRmsNorm(const std::vector<float>& input, const std::vector<float>& weight,
                                 const Device* device) {
  const int64_t size = static_cast<int64_t>(weight.size());
  std::vector<BFloat16> output(input.size());
  const RmsNormArgs args{.input = input.data(),
                         .weight = weight.data(),
                         .output = output.data(),
                         .num_rows = static_cast<int64_t>(input.size()) / size,
                         .hidden_size = size};
  EXPECT_OK(device == nullptr ? RmsNormReference(args) : RmsNorm(args, *device));
  return output;
}

TEST(RmsNormReferenceTest, HandWorked) {
  // Mean of squares (9 + 16) / 2 = 12.5: 3 / 3.5355 * 2 = 1.697 and 4 / 3.5355 = 1.1314.
  EXPECT_EQ(Floats(RunRmsNorm({3, 4}, {2, 1}, nullptr)),
            (std::vector<float>{1.6953125, 1.1328125}));
  // Of zeros, eps keeps the division finite.
  EXPECT_EQ(Floats(RunRmsNorm({0, 0}, {2, 1}, nullptr)), (std::vector<float>{0, 0}));
}

TEST(RmsNormTest, MatchesReferenceAndIgnoresOtherRows) {
  for (const int64_t size : kSizes) {
    const std::vector<float> weight = RandomNormal(size, size);
    const std::vector<float> input = RandomNormal(70 * size, size + 1, 3);
    const std::vector<BFloat16> expected = RunRmsNorm(input, weight, nullptr);
    for (const CpuIsa isa : TestIsas()) {
      const Device alone{.isa = isa};
      const std::vector<BFloat16> actual = RunRmsNorm(input, weight, &alone);
      // The FP32 values agree to about size * 2^-24 < 1e-4: at most one step of BF16 apart.
      EXPECT_TRUE(NearBf16(actual, expected, 0)) << Name(isa) << " " << size;
      for (const int threads : {2, 3}) {
        ThreadPool pool(threads);
        const Device device{.isa = isa, .pool = &pool};
        EXPECT_TRUE(SameBits(RunRmsNorm(input, weight, &device), actual)) << Name(isa);
      }
      const std::vector<float> last(input.end() - size, input.end());
      EXPECT_TRUE(SameBits(RunRmsNorm(last, weight, &alone),
                           std::vector<BFloat16>(actual.end() - size, actual.end())));
    }
  }
}

std::vector<BFloat16> RunSwiGlu(const std::vector<float>& gate_up, int64_t size,
                                const Device* device) {
  std::vector<BFloat16> output(gate_up.size() / 2);
  const SwiGluArgs args{.gate_up = gate_up.data(),
                        .output = output.data(),
                        .num_rows = static_cast<int64_t>(gate_up.size()) / (2 * size),
                        .intermediate_size = size};
  EXPECT_OK(device == nullptr ? SwiGluReference(args) : SwiGlu(args, *device));
  return output;
}

TEST(SwiGluReferenceTest, HandWorked) {
  // silu(0) = 0; silu(1) = 1 / (1 + 1/e) = 0.731059, times 2 = 1.462117, in BF16 1.4609375;
  // silu(-1) = -0.268941, times 3 = -0.806824, in BF16 -0.80859375.
  EXPECT_EQ(Floats(RunSwiGlu({0, 1, -1, 5, 2, 3}, 3, nullptr)),
            (std::vector<float>{0, 1.4609375, -0.80859375}));
}

TEST(SwiGluTest, MatchesReferenceAndIgnoresPosition) {
  for (const int64_t size : kSizes) {
    std::vector<float> gate_up = RandomNormal(40 * 2 * size, size, 5);
    gate_up[0] = 200;          // silu(x) = x
    gate_up[size - 1] = -200;  // silu(x) = -0
    const std::vector<BFloat16> expected = RunSwiGlu(gate_up, size, nullptr);
    for (const CpuIsa isa : TestIsas()) {
      const Device alone{.isa = isa};
      const std::vector<BFloat16> actual = RunSwiGlu(gate_up, size, &alone);
      // exp to 2 ulp, a division and a product: 2^-21 of the value, at most one step of BF16.
      EXPECT_TRUE(NearBf16(actual, expected, 1e-30f)) << Name(isa) << " " << size;
      // An element's place in the vector, or in the tail, does not change it.
      for (int64_t i = 0; i < size; ++i) {
        EXPECT_EQ(RunSwiGlu({gate_up[i], gate_up[size + i]}, 1, &alone)[0], actual[i]);
      }
      ThreadPool pool(3);
      const Device device{.isa = isa, .pool = &pool};
      EXPECT_TRUE(SameBits(RunSwiGlu(gate_up, size, &device), actual)) << Name(isa);
    }
  }
}

TEST(SwiGluTest, SpecialValues) {
  for (const CpuIsa isa : TestIsas()) {
    const Device device{.isa = isa};
    const std::vector<float> out =
        Floats(RunSwiGlu({NAN, INFINITY, -100, -88.5f, 90, 1, 1, 1, 1, 1}, 5, &device));
    EXPECT_TRUE(std::isnan(out[0]));
    EXPECT_EQ(out[1], INFINITY);
    EXPECT_NEAR(out[2], 0, 1e-36);
    EXPECT_NEAR(out[3], 0, 1e-36);
    EXPECT_EQ(out[4], 90);
  }
}

struct CombineProblem {
  CombineProblem(int64_t num_tokens, int k, int64_t size, uint64_t seed)
      : tokens(num_tokens),
        top_k(k),
        hidden_size(size),
        rows(RandomBf16(num_tokens * k * size, seed)),
        weights(RandomNormal(num_tokens * k, seed + 1)),
        residual(RandomNormal(num_tokens * size, seed + 2)) {
    // Rows lie anywhere: here in reverse order.
    for (int64_t i = num_tokens * k; i-- > 0;) pointers.push_back(rows.data() + i * size);
  }
  std::vector<float> Run(const Device* device) const {
    std::vector<float> output = residual;
    const MoeCombineArgs args{.expert_rows = pointers.data(),
                              .topk_weights = weights.data(),
                              .residual = output.data(),
                              .num_tokens = tokens,
                              .num_experts_per_tok = top_k,
                              .hidden_size = hidden_size};
    EXPECT_OK(device == nullptr ? MoeCombineReference(args) : MoeCombine(args, *device));
    return output;
  }
  int64_t tokens;
  int top_k;
  int64_t hidden_size;
  std::vector<BFloat16> rows;
  std::vector<float> weights, residual;
  std::vector<const BFloat16*> pointers;
};

TEST(MoeCombineReferenceTest, HandWorked) {
  const std::vector<BFloat16> a = ToBFloat16(std::vector<float>{1, 2});
  const std::vector<BFloat16> b = ToBFloat16(std::vector<float>{4, -8});
  const BFloat16* rows[] = {a.data(), b.data()};
  const float weights[] = {0.75, 0.25};
  std::vector<float> residual = {10, 20};
  ASSERT_OK(MoeCombineReference({.expert_rows = rows,
                                 .topk_weights = weights,
                                 .residual = residual.data(),
                                 .num_tokens = 1,
                                 .num_experts_per_tok = 2,
                                 .hidden_size = 2}));
  EXPECT_THAT(residual, testing::ElementsAre(11.75, 19.5));
}

TEST(MoeCombineTest, MatchesReferenceForAnyThreads) {
  for (const int64_t size : kSizes) {
    const CombineProblem problem(30, 8, size, size);
    const std::vector<float> expected = problem.Run(nullptr);
    for (const CpuIsa isa : TestIsas()) {
      const Device alone{.isa = isa};
      const std::vector<float> actual = problem.Run(&alone);
      for (size_t i = 0; i < actual.size(); ++i) {
        // 8 products of magnitude below 20 in all: 9 roundings of 2^-24 * 20 on each side.
        ASSERT_NEAR(actual[i], expected[i], 2 * 9 * 0x1p-24 * 20) << Name(isa) << " " << size;
      }
      ThreadPool pool(3);
      const Device device{.isa = isa, .pool = &pool};
      EXPECT_TRUE(SameBits(problem.Run(&device), actual)) << Name(isa) << " " << size;
    }
  }
}

TEST(RowsTest, RefuseBadArguments) {
  const Device device;
  std::vector<float> floats(8);
  std::vector<BFloat16> out(8);
  EXPECT_THAT(RmsNorm({.num_rows = -1, .hidden_size = 1}, device),
              StatusIs(kInvalid, HasSubstr("num_rows is -1")));
  EXPECT_THAT(RmsNorm({.num_rows = 1, .hidden_size = 0}, device),
              StatusIs(kInvalid, HasSubstr("hidden_size is 0")));
  EXPECT_THAT(RmsNorm({.num_rows = 1, .hidden_size = 4}, device),
              StatusIs(kInvalid, HasSubstr("input is null")));
  EXPECT_THAT(RmsNormReference({.input = floats.data(), .num_rows = 1, .hidden_size = 4}),
              StatusIs(kInvalid, HasSubstr("weight is null")));
  EXPECT_OK(RmsNorm({.hidden_size = 4}, device));

  EXPECT_THAT(SwiGlu({.num_rows = 1, .intermediate_size = 0}, device),
              StatusIs(kInvalid, HasSubstr("intermediate_size is 0")));
  EXPECT_THAT(SwiGlu({.num_rows = 1, .intermediate_size = 4}, device),
              StatusIs(kInvalid, HasSubstr("gate_up is null")));
  EXPECT_THAT(SwiGluReference({.gate_up = floats.data(), .num_rows = 1, .intermediate_size = 4}),
              StatusIs(kInvalid, HasSubstr("output is null")));

  EXPECT_THAT(MoeCombine({.num_tokens = 1, .num_experts_per_tok = 0, .hidden_size = 4}, device),
              StatusIs(kInvalid, HasSubstr("num_experts_per_tok is 0")));
  EXPECT_THAT(MoeCombine({.num_tokens = 1, .num_experts_per_tok = 1, .hidden_size = 4}, device),
              StatusIs(kInvalid, HasSubstr("expert_rows is null")));
  const BFloat16* rows[] = {nullptr};
  EXPECT_THAT(MoeCombineReference({.expert_rows = rows,
                                   .topk_weights = floats.data(),
                                   .residual = floats.data(),
                                   .num_tokens = 1,
                                   .num_experts_per_tok = 1,
                                   .hidden_size = 4}),
              StatusIs(kInvalid, HasSubstr("expert_rows entry is null")));
}

}  // namespace
}  // namespace conclave
