#include "kernels/cuda/quantize.h"

#include <cmath>
#include <limits>

#include "common/fp8.h"
#include "tests/kernels/cuda/cuda_test_support.h"

namespace conclave::cuda {
namespace {

using testing::HasSubstr;

// The E4M3 number nearest to `value`, of two the one whose last bit is zero; 448 above it.
uint8_t NearestE4M3(double value) {
  if (std::isnan(value)) return 0x7f;
  uint8_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (int code = 0; code < 0x7f; ++code) {
    const double distance = std::fabs(std::fabs(value) - E4M3ToFloat(static_cast<uint8_t>(code)));
    if (distance < least || (distance == least && code % 2 == 0)) {
      best = static_cast<uint8_t>(code);
      least = distance;
    }
  }
  return std::signbit(value) ? best | 0x80 : best;
}

class QuantizeRowsTest : public CudaTest {
 protected:
  struct Rows {
    std::vector<uint8_t> values;
    std::vector<float> scales;
  };
  Rows Quantize(const std::vector<BFloat16>& input, int64_t num_rows, int64_t num_padded_rows,
                int64_t width) {
    uint8_t* const values = Empty<uint8_t>(num_padded_rows * width);
    float* const scales = Empty<float>(num_padded_rows * width / 128);
    EXPECT_OK(QuantizeRows({.input = Upload(input),
                            .values = values,
                            .scales = scales,
                            .num_rows = num_rows,
                            .num_padded_rows = num_padded_rows,
                            .width = width},
                           stream()));
    return {Download(values, num_padded_rows * width),
            Download(scales, num_padded_rows * width / 128)};
  }
};

TEST_F(QuantizeRowsTest, EachGroupOfARowHasAScaleOfItsOwn) {
  for (const int64_t width : {128, 384, 640}) {
    for (const auto& [rows, padded] : {std::pair<int64_t, int64_t>{1, 1}, {3, 4}, {8, 8}}) {
      const int64_t groups = width / 128;
      std::vector<BFloat16> input = RandomBf16(rows * width, FreshSeed(width + rows));
      // Groups of very different sizes; the last of the first row is all zeros.
      for (int64_t i = 0; i < rows * width; ++i) {
        const int64_t group = i / 128;
        input[i] = ToBFloat16(std::ldexp(ToFloat(input[i]), static_cast<int>(group % 5 * 9 - 20)));
        if (group == groups - 1) input[i] = BFloat16{};
      }
      const Rows actual = Quantize(input, rows, padded, width);
      for (int64_t row = 0; row < padded; ++row) {
        for (int64_t group = 0; group < groups; ++group) {
          const auto value = [&](int64_t i) {
            return row < rows ? ToFloat(input[row * width + group * 128 + i]) : 0;
          };
          float largest = 0;
          for (int i = 0; i < 128; ++i) largest = std::max(largest, std::fabs(value(i)));
          const float scale = actual.scales[group * padded + row];
          ASSERT_EQ(scale, std::max(largest / 448.0f, 0x1p-126f)) << row << " " << group;
          for (int i = 0; i < 128; ++i) {
            ASSERT_EQ(actual.values[row * width + group * 128 + i], NearestE4M3(value(i) / scale))
                << value(i) << " / " << scale;
          }
        }
      }
    }
  }
}

// With 448 in a group the scale is 1: every number of E4M3, what lies between two, and what lies
// beside that, of both signs.
TEST_F(QuantizeRowsTest, RoundsToNearestAndTiesToEven) {
  std::vector<BFloat16> input;
  const auto add = [&](float value) {
    for (const float sign : {1.0f, -1.0f}) {
      if (input.size() % 128 == 0) input.push_back(ToBFloat16(448));
      input.push_back(ToBFloat16(sign * value));
    }
  };
  for (int code = 0; code < 0x7e; ++code) {
    const float low = E4M3ToFloat(static_cast<uint8_t>(code));
    const float high = E4M3ToFloat(static_cast<uint8_t>(code + 1));
    const BFloat16 middle = ToBFloat16((low + high) / 2);
    ASSERT_EQ(ToFloat(middle), (low + high) / 2);  // BF16 has it
    add(low);
    add(ToFloat(middle));
    add(ToFloat(BFloat16{static_cast<uint16_t>(middle.bits - 1)}));
    add(ToFloat(BFloat16{static_cast<uint16_t>(middle.bits + 1)}));
  }
  input.resize((input.size() + 127) / 128 * 128, ToBFloat16(448));
  const auto width = static_cast<int64_t>(input.size());
  const Rows actual = Quantize(input, 1, 1, width);
  for (int64_t i = 0; i < width; ++i) {
    EXPECT_EQ(actual.values[i], NearestE4M3(ToFloat(input[i]))) << ToFloat(input[i]);
  }
  EXPECT_THAT(actual.scales, testing::Each(1.0f));
}

TEST_F(QuantizeRowsTest, WhatIsNotFiniteMakesItsGroupNan) {
  constexpr int64_t kWidth = 512;
  std::vector<BFloat16> input = RandomBf16(kWidth, FreshSeed(1));
  input[3] = ToBFloat16(std::numeric_limits<float>::quiet_NaN());
  input[128 + 5] = ToBFloat16(-std::numeric_limits<float>::infinity());
  const Rows actual = Quantize(input, 1, 1, kWidth);
  for (const int group : {0, 1, 2, 3}) {
    float sum = 0;
    for (int i = 0; i < 128; ++i) {
      sum += E4M3ToFloat(actual.values[group * 128 + i]) * actual.scales[group];
    }
    EXPECT_EQ(std::isnan(sum), group < 2) << group;
  }
}

TEST_F(QuantizeRowsTest, RefusesWhatItDoesNotTake) {
  const BFloat16* const input = Empty<BFloat16>(128);
  QuantizeRowsArgs args = {.input = input,
                           .values = Empty<uint8_t>(128),
                           .scales = Empty<float>(1),
                           .num_rows = 1,
                           .num_padded_rows = 1,
                           .width = 128};
  const auto refused = [&](const char* why) {
    return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why));
  };
  args.width = 96;
  EXPECT_THAT(QuantizeRows(args, stream()), refused("width is 96, want a multiple of 128"));
  args.width = 128;
  args.num_padded_rows = 0;
  EXPECT_THAT(QuantizeRows(args, stream()), refused("num_padded_rows is 0, want 1.."));
  args.num_padded_rows = 1;
  args.scales = nullptr;
  EXPECT_THAT(QuantizeRows(args, stream()), refused("scales is null"));
}

}  // namespace
}  // namespace conclave::cuda
