#include "expert_shard/weight_loader.h"

#include <gmock/gmock.h>

#include "model/memory_plan.h"
#include "tests/kernels/kernel_test_support.h"
#include "tests/support/test_shard.h"

namespace conclave {
namespace {

using testing::HasSubstr;

constexpr WeightDtype kAll[] = {WeightDtype::kBf16, WeightDtype::kInt8, WeightDtype::kInt4,
                                WeightDtype::kFp8};

Qwen3Config Fp8Config() {
  Qwen3Config config = TinyMoeConfig();
  config.quantization = WeightQuantization::kFp8Block128;
  return config;
}

TEST(ChooseWeightDtypeTest, AutoKeepsWhatTheCheckpointHas) {
  EXPECT_EQ(*ChooseWeightDtype("auto", TinyMoeConfig()), WeightDtype::kBf16);
  EXPECT_EQ(*ChooseWeightDtype("auto", Fp8Config()), WeightDtype::kFp8);
  EXPECT_EQ(*ChooseWeightDtype("fp8", Fp8Config()), WeightDtype::kFp8);
  EXPECT_EQ(*ChooseWeightDtype("bf16", Fp8Config()), WeightDtype::kBf16);
  EXPECT_EQ(*ChooseWeightDtype("int4", TinyMoeConfig()), WeightDtype::kInt4);
  EXPECT_THAT(ChooseWeightDtype("q8", TinyMoeConfig()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("weight_dtype is \"q8\", want auto, bf16, int8, int4")));
  EXPECT_THAT(ChooseWeightDtype("fp8", TinyMoeConfig()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("fp8 for an FP8 checkpoint")));
}

TEST(FingerprintAsTest, QuantizedWeightsAreAnotherModel) {
  EXPECT_EQ(FingerprintAs("abc", WeightDtype::kBf16), "abc");
  EXPECT_EQ(FingerprintAs("abc", WeightDtype::kFp8), "abc");
  EXPECT_EQ(FingerprintAs("abc", WeightDtype::kInt8), "abc-int8");
  EXPECT_EQ(FingerprintAs("abc", WeightDtype::kInt4), "abc-int4");
}

std::vector<BFloat16> RunExperts(TestModel& model, WeightDtype dtype) {
  const auto runner = model.LoadRunner({1, 4, 6}, dtype);
  const int hidden = model.config().hidden_size;
  const std::vector<BFloat16> rows = RandomRows(3, hidden, 5);
  const std::vector<uint32_t> pair_rows = {0, 2, 1, 1}, pair_experts = {1, 1, 4, 6};
  std::vector<BFloat16> output(4 * hidden);
  EXPECT_OK(runner->Run(1, rows.data(), 3, pair_rows, pair_experts, output.data()));
  return output;
}

TEST(LoadPackedTest, Fp8StaysSmallAndGivesTheBitsOfBf16) {
  TestModel model(Fp8Config());
  EXPECT_TRUE(
      SameBits(RunExperts(model, WeightDtype::kFp8), RunExperts(model, WeightDtype::kBf16)));
  EXPECT_EQ(model.LoadRunner({0}, WeightDtype::kFp8)->dtype(), WeightDtype::kFp8);
}

TEST(LoadPackedTest, QuantizedExpertsStayNearBf16) {
  TestModel model(TinyMoeConfig());
  const std::vector<BFloat16> exact = RunExperts(model, WeightDtype::kBf16);
  double largest = 0;
  for (const BFloat16 value : exact) largest = std::max(largest, std::fabs(double{ToFloat(value)}));
  // One step of int8 is 1 / 127 of a group's largest weight, of int4 1 / 7; uniform weights and
  // three matrices in a row: the output, a sum of such errors, moves by a few of those steps.
  for (const auto& [dtype, share] :
       {std::pair(WeightDtype::kInt8, 0.1), std::pair(WeightDtype::kInt4, 0.6)}) {
    const std::vector<BFloat16> near = RunExperts(model, dtype);
    EXPECT_FALSE(SameBits(near, exact)) << WeightDtypeName(dtype) << " quantizes nothing";
    for (size_t i = 0; i < near.size(); ++i) {
      EXPECT_NEAR(ToFloat(near[i]), ToFloat(exact[i]), largest * share) << WeightDtypeName(dtype);
    }
  }
}

TEST(PackedBytesTest, ExpertsTakeWhatThePlanSays) {
  TestModel model(Fp8Config());
  for (const WeightDtype dtype : kAll) {
    EXPECT_EQ(static_cast<int64_t>(model.LoadRunner({0, 3, 5}, dtype)->weight_bytes()),
              PackedExpertBytes(model.config(), 3, dtype))
        << WeightDtypeName(dtype);
  }
}

}  // namespace
}  // namespace conclave
