#include "kernels/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/kernel_test_support.h"

namespace conclave {
namespace {

using testing::ElementsAre;

struct Group {
  std::vector<int> codes;
  float scale;
};

Group Quantized(void (*quantize)(const BFloat16*, int64_t, int8_t*, float*),
                const std::vector<float>& values) {
  const std::vector<BFloat16> rounded = ToBFloat16(values);
  std::vector<int8_t> codes(values.size(), 77);
  Group group;
  quantize(rounded.data(), static_cast<int64_t>(values.size()), codes.data(), &group.scale);
  group.codes.assign(codes.begin(), codes.end());
  return group;
}

TEST(QuantizeInt8Test, TheLargestIs127AndTiesGoToEven) {
  const Group group = Quantized(QuantizeInt8, {127, -64, 0.5f, 1.5f, -2.5f, 0});
  EXPECT_THAT(group.codes, ElementsAre(127, -64, 0, 2, -2, 0));
  EXPECT_EQ(group.scale, 1);
  EXPECT_THAT(Quantized(QuantizeInt8, {-0.5f, 0.25f}).codes, ElementsAre(-127, 64));
}

TEST(QuantizeInt8Test, ZerosHaveScaleZero) {
  const Group group = Quantized(QuantizeInt8, {0, -0.0f});
  EXPECT_THAT(group.codes, ElementsAre(0, 0));
  EXPECT_EQ(group.scale, 0);
}

TEST(QuantizeInt8Test, NotFiniteGivesScaleNan) {
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    const Group group = Quantized(QuantizeInt8, {1, bad});
    EXPECT_THAT(group.codes, ElementsAre(0, 0));
    EXPECT_TRUE(std::isnan(group.scale));
  }
}

TEST(QuantizeInt8Test, TheSmallestMagnitudesStayFinite) {
  const Group group = Quantized(QuantizeInt8, {0x1p-133f, 0});  // the least BF16
  EXPECT_TRUE(std::isfinite(group.scale));
  EXPECT_GE(group.codes[0], 0);
}

TEST(QuantizeInt4Test, WholeNumbersAreExact) {
  const Group group = Quantized(QuantizeInt4, {-8, -7, -3, 0, 1, 6, 7});
  EXPECT_THAT(group.codes, ElementsAre(-8, -7, -3, 0, 1, 6, 7));
  EXPECT_EQ(group.scale, 1);
  const Group mirrored = Quantized(QuantizeInt4, {8, -7, 3});
  EXPECT_THAT(mirrored.codes, ElementsAre(-8, 7, -3));
  EXPECT_EQ(mirrored.scale, -1);
}

TEST(QuantizeInt4Test, ClipsOneExtremeWhereThatServesTheRest) {
  std::vector<float> values(64, 1.0f);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0.45f * static_cast<float>(i % 9) - 1.8f;
  values[5] = 4;
  const Group group = Quantized(QuantizeInt4, values);
  double error = 0, unclipped = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    error += std::pow(values[i] - static_cast<float>(group.codes[i]) * group.scale, 2);
    unclipped += std::pow(values[i] - std::round(values[i] / -0.5f) * -0.5f, 2);
  }
  EXPECT_LE(error, unclipped);
}

TEST(QuantizeInt4Test, ZerosAndNotFinite) {
  EXPECT_EQ(Quantized(QuantizeInt4, {0, 0}).scale, 0);
  EXPECT_TRUE(std::isnan(Quantized(QuantizeInt4, {NAN, 1}).scale));
}

}  // namespace
}  // namespace conclave
