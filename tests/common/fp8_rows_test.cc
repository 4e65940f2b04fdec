#include "common/fp8_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "common/fp8.h"

namespace conclave {
namespace {

std::vector<float> ThereAndBack(const std::vector<float>& values, int row_size) {
  const size_t num_rows = values.size() / row_size;
  std::vector<BFloat16> rows;
  for (const float value : values) rows.push_back(ToBFloat16(value));
  std::vector<uint8_t> encoded(Fp8RowsBytes(num_rows, row_size));
  EncodeFp8Rows(rows.data(), num_rows, row_size, encoded.data());
  std::vector<BFloat16> decoded(rows.size());
  DecodeFp8Rows(encoded.data(), num_rows, row_size, decoded.data());
  std::vector<float> back;
  for (const BFloat16 value : decoded) back.push_back(ToFloat(value));
  return back;
}

TEST(Fp8RowsTest, EveryCodeComesBackAsItself) {
  for (int code = 0; code < 256; ++code) {
    const float value = E4M3ToFloat(static_cast<uint8_t>(code));
    if (std::isnan(value)) continue;
    const BFloat16 row[] = {ToBFloat16(value), ToBFloat16(448)};  // a factor of 1
    std::vector<uint8_t> encoded(Fp8RowsBytes(1, 2));
    EncodeFp8Rows(row, 1, 2, encoded.data());
    EXPECT_EQ(encoded[0], code);
    EXPECT_EQ(encoded[1], 0x7e);
  }
}

TEST(Fp8RowsTest, RoundsToNearestAndTiesToEven) {
  // Neighbours 16, 18, 20 and 0, 2^-9, 2 * 2^-9.
  const std::vector<float> row = {448, 17, 19, 17.125f, 0x1p-10f, 3 * 0x1p-10f, -17, -0.0f};
  const std::vector<float> wanted = {448, 16, 20, 18, 0, 0x1p-8f, -16, -0.0f};
  EXPECT_EQ(ThereAndBack(row, 8), wanted);
}

TEST(Fp8RowsTest, IsAsCloseAsItSays) {
  std::mt19937 random(testing::UnitTest::GetInstance()->random_seed());
  std::normal_distribution<float> normal;
  constexpr int kRowSize = 96;
  for (const float scale : {1e-20f, 1e-3f, 1.0f, 3e4f, 1e30f}) {
    std::vector<float> values(5 * kRowSize);
    for (float& value : values) value = ToFloat(ToBFloat16(normal(random) * scale));
    const std::vector<float> back = ThereAndBack(values, kRowSize);
    for (size_t i = 0; i < values.size(); ++i) {
      float largest = 0;
      for (size_t j = i / kRowSize * kRowSize; j < (i / kRowSize + 1) * kRowSize; ++j) {
        largest = std::max(largest, std::fabs(values[j]));
      }
      // Half a step of E4M3's three bits is 1/16 of a value at most, half a subnormal step 2^-10 of
      // 448ths; the way to the factor and back to BF16 adds less than 2^-8 of the value.
      const float allowed = std::max(std::fabs(values[i]) * (0x1p-4f + 0x1p-8f),
                                     largest * (0x1p-10f / 448 + 0x1p-22f));
      EXPECT_NEAR(back[i], values[i], allowed) << i;
    }
  }
}

TEST(Fp8RowsTest, RowsOfZerosAndOfNoNumbers) {
  EXPECT_EQ(ThereAndBack({0, 0, 1, 2}, 2), (std::vector<float>{0, 0, 1, 2}));
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> back = ThereAndBack({infinity, 7, std::nanf(""), -14}, 4);
  EXPECT_TRUE(std::isnan(back[0]));
  EXPECT_TRUE(std::isnan(back[2]));
  EXPECT_EQ(back[1], 7);
  EXPECT_EQ(back[3], -14);
  EXPECT_EQ(Fp8RowsBytes(0, 64), 0u);
}

}  // namespace
}  // namespace conclave
