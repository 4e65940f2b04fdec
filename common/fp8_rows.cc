#include "common/fp8_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/fp8.h"

namespace conclave {
namespace {

constexpr float kLargestE4M3 = 448.0f;
constexpr uint8_t kNan = 0x7f;

// Nearest, ties to even; what is larger than the largest becomes it.
uint8_t ToE4M3(float value) {
  if (!std::isfinite(value)) return kNan;
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float magnitude = std::min(std::fabs(value), kLargestE4M3);
  // Steps of an eighth of the power of two below it, and of 2^-9 below 2^-6. nearbyint rounds ties
  // to even; a value that rounds up to the next power of two has the code that follows.
  int exponent = magnitude < 0x1p-6f ? -6 : std::ilogb(magnitude);
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
  return static_cast<uint8_t>(sign | ((exponent + 6) * 8 + steps));
}

}  // namespace

size_t Fp8RowsBytes(size_t num_rows, int row_size) {
  return num_rows * (static_cast<size_t>(row_size) + sizeof(float));
}

void EncodeFp8Rows(const BFloat16* rows, size_t num_rows, int row_size, uint8_t* out) {
  uint8_t* factors = out + num_rows * static_cast<size_t>(row_size);
  for (size_t row = 0; row < num_rows; ++row) {
    float largest = 0;
    for (int i = 0; i < row_size; ++i) {
      const float magnitude = std::fabs(ToFloat(rows[i]));
      if (std::isfinite(magnitude)) largest = std::max(largest, magnitude);
    }
    const float factor = largest / kLargestE4M3;
    // A factor that is zero or no normal number would lose the row, or divide by zero.
    const float used = factor >= 0x1p-126f ? factor : 0x1p-126f;
    for (int i = 0; i < row_size; ++i) out[i] = ToE4M3(ToFloat(rows[i]) / used);
    std::memcpy(factors, &used, sizeof(used));
    rows += row_size;
    out += row_size;
    factors += sizeof(used);
  }
}

void DecodeFp8Rows(const uint8_t* encoded, size_t num_rows, int row_size, BFloat16* rows) {
  const uint8_t* factors = encoded + num_rows * static_cast<size_t>(row_size);
  for (size_t row = 0; row < num_rows; ++row) {
    float factor = 0;
    std::memcpy(&factor, factors, sizeof(factor));
    for (int i = 0; i < row_size; ++i) rows[i] = ToBFloat16(E4M3ToFloat(encoded[i]) * factor);
    rows += row_size;
    encoded += row_size;
    factors += sizeof(factor);
  }
}

}  // namespace conclave
