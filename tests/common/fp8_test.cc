#include "common/fp8.h"

#include <gtest/gtest.h>

#include <cmath>

namespace conclave {
namespace {

TEST(Fp8Test, HandWorkedValues) {
  EXPECT_EQ(E4M3ToFloat(0x00), 0.0f);
  EXPECT_TRUE(std::signbit(E4M3ToFloat(0x80)));
  EXPECT_EQ(E4M3ToFloat(0x01), 0x1p-9f);  // smallest subnormal: 1/8 * 2^-6
  EXPECT_EQ(E4M3ToFloat(0x07), 0x7p-9f);  // largest subnormal
  EXPECT_EQ(E4M3ToFloat(0x08), 0x1p-6f);  // smallest normal
  EXPECT_EQ(E4M3ToFloat(0x38), 1.0f);     // exponent 7 is 2^0
  EXPECT_EQ(E4M3ToFloat(0x3c), 1.5f);
  EXPECT_EQ(E4M3ToFloat(0xb9), -1.125f);
  EXPECT_EQ(E4M3ToFloat(0x7e), 448.0f);  // 1.75 * 2^8
  EXPECT_TRUE(std::isnan(E4M3ToFloat(0x7f)));
  EXPECT_TRUE(std::isnan(E4M3ToFloat(0xff)));
}

// Sign, exponent with a bias of 7, mantissa in eighths; below exponent 1 no leading 1.
TEST(Fp8Test, EveryCodeByItsDefinition) {
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const float value = E4M3ToFloat(static_cast<uint8_t>(code));
    if (exponent == 15 && mantissa == 7) {
      EXPECT_TRUE(std::isnan(value)) << code;
      continue;
    }
    const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                     : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    EXPECT_EQ(value, code < 128 ? size : -size) << code;
    EXPECT_EQ(std::signbit(value), code >= 128) << code;
  }
}

}  // namespace
}  // namespace conclave
