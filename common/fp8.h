#pragma once

#include <bit>
#include <cstdint>

namespace conclave {

// FP8 E4M3 of the FN kind: bias 7, no infinity, NaN only for all ones. Exact.
constexpr float E4M3ToFloat(uint8_t bits) {
  const uint32_t magnitude = bits & 0x7f;
  float value;
  if (magnitude == 0x7f) {
    value = std::bit_cast<float>(0x7fc00000u);
  } else if (magnitude < 8) {
    value = static_cast<float>(magnitude) * 0x1p-9f;  // subnormal: eighths of 2^-6
  } else {
    // 4 bits of exponent and 3 of mantissa move to the top of FP32's; the bias grows by 120.
    value = std::bit_cast<float>((magnitude << 20) + (uint32_t{120} << 23));
  }
  return (bits & 0x80) != 0 ? -value : value;
}

}  // namespace conclave
