#include "kernels/quantize.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>

namespace conclave {
namespace {

constexpr uint16_t kInfinityBits = 0x7f80;

// Bits of the largest magnitude: BF16 magnitudes compare as whole numbers, NaN above infinity.
uint16_t LargestBits(const BFloat16* values, int64_t size) {
  int largest = 0;
  for (int64_t i = 0; i < size; ++i) largest = std::max(largest, values[i].bits & 0x7fff);
  return static_cast<uint16_t>(largest);
}

// Adding 1.5 * 2^23 leaves no bit for a fraction: rounds to the nearest whole number, ties to even,
// as the conversions of the vector units do. For |x| < 2^22.
float Round(float x) { return (x + 12582912.0f) - 12582912.0f; }

}  // namespace

void QuantizeInt8(const BFloat16* values, int64_t size, int8_t* codes, float* scale) {
  const uint16_t bits = LargestBits(values, size);
  if (bits == 0 || bits >= kInfinityBits) {
    std::fill_n(codes, size, int8_t{0});
    *scale = bits == 0 ? 0 : std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const float largest = ToFloat(BFloat16{bits});
  // 127 / largest overflows below 2^-121; such a group is as good as zero.
  const float inverse = std::min(127.0f / largest, std::numeric_limits<float>::max());
  for (int64_t i = 0; i < size; ++i) {
    codes[i] = static_cast<int8_t>(Round(ToFloat(values[i]) * inverse));
  }
  *scale = largest / 127.0f;
}

void QuantizeInt4(const BFloat16* values, int64_t size, int8_t* codes, float* scale) {
  const uint16_t bits = LargestBits(values, size);
  if (bits == 0 || bits >= kInfinityBits) {
    std::fill_n(codes, size, int8_t{0});
    *scale = bits == 0 ? 0 : std::numeric_limits<float>::quiet_NaN();
    return;
  }
  // The value of the largest magnitude, so that it may take code -8, of which there is no +8.
  float extreme = 0;
  for (int64_t i = 0; i < size; ++i) {
    if ((values[i].bits & 0x7fff) == bits) extreme = ToFloat(values[i]);
  }
  float best_error = std::numeric_limits<float>::infinity();
  *scale = 0;
  // -8 steps to the extreme down to clipping a third of it.
  for (const float steps : {-8.0f, -8.75f, -9.5f, -10.5f, -12.0f}) {
    const float tried = extreme / steps;
    const float inverse = std::clamp(steps / extreme, std::numeric_limits<float>::lowest(),
                                     std::numeric_limits<float>::max());
    // 8 sums, so that the compiler may use vectors.
    float errors[8] = {};
    for (int64_t i = 0; i < size; i += 8) {
      const int64_t count = std::min<int64_t>(8, size - i);
      for (int64_t j = 0; j < count; ++j) {
        const float value = ToFloat(values[i + j]);
        const float code = std::clamp(Round(value * inverse), -8.0f, 7.0f);
        errors[j] += (value - code * tried) * (value - code * tried);
      }
    }
    const float error = std::accumulate(std::begin(errors), std::end(errors), 0.0f);
    if (error < best_error) {
      best_error = error;
      *scale = tried;
    }
  }
  const float inverse = std::clamp(1 / *scale, std::numeric_limits<float>::lowest(),
                                   std::numeric_limits<float>::max());
  for (int64_t i = 0; i < size; ++i) {
    const float code = std::clamp(ToFloat(values[i]) * inverse, -8.0f, 7.0f);
    codes[i] = static_cast<int8_t>(Round(code));
  }
}

}  // namespace conclave
