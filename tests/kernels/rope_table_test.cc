#include "kernels/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>

namespace conclave {
namespace {

TEST(RopeTableTest, DefaultHandWorked) {
  // head_dim 4, theta 100: frequencies 1 and 100^(-2/4) = 0.1.
  const RopeTable table = MakeRopeTable({.head_dim = 4, .rope_theta = 100, .max_positions = 3});
  EXPECT_EQ(table.head_dim, 4);
  EXPECT_EQ(table.max_positions, 3);
  ASSERT_EQ(table.cos.size(), 6u);
  EXPECT_FLOAT_EQ(table.cos[0], 1);
  EXPECT_FLOAT_EQ(table.sin[0], 0);
  EXPECT_FLOAT_EQ(table.cos[2], 0.54030231f);   // cos 1
  EXPECT_FLOAT_EQ(table.sin[3], 0.09983342f);   // sin 0.1
  EXPECT_FLOAT_EQ(table.cos[4], -0.41614684f);  // cos 2
  EXPECT_FLOAT_EQ(table.sin[5], 0.19866933f);   // sin 0.2
}

TEST(RopeTableTest, Qwen3At40000RoundsTheAngleToFp32) {
  const RopeTable table = MakeRopeTable({.head_dim = 128, .max_positions = 40960});
  // Dimension 1: 1000000^(-2/128) = 0.80584219 in FP32; the angle is their FP32 product.
  const float inverse = 1.0f / static_cast<float>(std::pow(1e6, 2.0 / 128));
  const float angle = 40000.0f * inverse;
  EXPECT_FLOAT_EQ(inverse, 0.80584219f);
  EXPECT_EQ(table.cos[40000 * 64 + 1], static_cast<float>(std::cos(double{angle})));
  EXPECT_EQ(table.sin[40000 * 64 + 1], static_cast<float>(std::sin(double{angle})));
}

TEST(RopeTableTest, YarnHandWorked) {
  // Qwen3's recommended YaRN: factor 4 over 32768 positions. With head_dim 128 and theta 1e6 the
  // correction dimension of n turns is 128 * ln(32768 / (2 pi n)) / (2 ln 1e6):
  // 32 turns: 128 * 5.0938 / 27.6310 = 23.597, floor 23; 1 turn: 128 * 8.5595 / 27.6310 = 39.652,
  // ceil 40. Dimensions up to 23 keep their frequency, from 40 on it is a quarter.
  const RopeTable plain = MakeRopeTable({.head_dim = 128, .max_positions = 2});
  const RopeTable table =
      MakeRopeTable({.head_dim = 128,
                     .max_positions = 2,
                     .yarn = YarnParams{.factor = 4, .original_max_position_embeddings = 32768}});
  const double mscale = 0.1 * std::log(4.0) + 1;              // 1.1386
  EXPECT_FLOAT_EQ(table.cos[0], static_cast<float>(mscale));  // position 0: cos 0 times the factor
  for (int i = 0; i < 64; ++i) {
    const double frequency = std::pow(1e6, -2.0 * i / 128);
    const double ramp = std::min(1.0, std::max(0.0, (i - 23.0) / (40.0 - 23.0)));
    const double expected = frequency / 4 * ramp + frequency * (1 - ramp);
    EXPECT_NEAR(table.sin[64 + i], std::sin(expected) * mscale, 2e-7) << i;
    if (i <= 23) {
      EXPECT_NEAR(table.sin[64 + i], plain.sin[64 + i] * mscale, 2e-7) << i;
    }
  }
}

TEST(RopeTableTest, YarnTakesAGivenAttentionFactor) {
  const RopeTable table = MakeRopeTable(
      {.head_dim = 8,
       .rope_theta = 10000,
       .max_positions = 1,
       .yarn = YarnParams{
           .factor = 2, .original_max_position_embeddings = 64, .attention_factor = 0.5f}});
  EXPECT_EQ(table.cos[0], 0.5f);
}

TEST(RopeTableTest, YarnOfFactorOneChangesNothing) {
  const RopeParams params{.head_dim = 16, .max_positions = 5};
  RopeParams yarn = params;
  yarn.yarn = YarnParams{.factor = 1, .original_max_position_embeddings = 5};
  const RopeTable expected = MakeRopeTable(params), actual = MakeRopeTable(yarn);
  for (size_t i = 0; i < expected.cos.size(); ++i) {
    EXPECT_NEAR(actual.cos[i], expected.cos[i], 1e-6);
    EXPECT_NEAR(actual.sin[i], expected.sin[i], 1e-6);
  }
}

}  // namespace
}  // namespace conclave
