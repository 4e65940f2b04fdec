#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/bfloat16.h"
#include "kernels/device.h"
#include "kernels/packed_matrix.h"

namespace conclave {

// Every instruction set this machine runs: plain up to the detected one.
inline std::vector<CpuIsa> TestIsas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : {CpuIsa::kPlain, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (isa <= DetectCpuIsa()) isas.push_back(isa);
  }
  return isas;
}

inline std::string Name(CpuIsa isa) { return std::string(CpuIsaName(isa)); }

inline std::vector<float> RandomNormal(int64_t size, uint64_t seed, float scale = 1) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(size);
  for (float& value : values) value = normal(generator);
  return values;
}

inline std::vector<BFloat16> ToBFloat16(const std::vector<float>& values) {
  std::vector<BFloat16> rounded(values.size());
  for (size_t i = 0; i < values.size(); ++i) rounded[i] = ToBFloat16(values[i]);
  return rounded;
}

inline std::vector<BFloat16> RandomBf16(int64_t size, uint64_t seed, float scale = 1) {
  return ToBFloat16(RandomNormal(size, seed, scale));
}

inline PackedMatrix Pack(const std::vector<BFloat16>& rows, int64_t in_features) {
  const MatrixRows part{rows.data(), static_cast<int64_t>(rows.size()) / in_features};
  return PackedMatrix::Pack({&part, 1}, in_features, nullptr);
}

// Bits, not values: NaN equals NaN, 0 differs from -0.
template <typename T>
testing::AssertionResult SameBits(const std::vector<T>& actual, const std::vector<T>& expected) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure() << actual.size() << " values, want " << expected.size();
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) != 0) {
      return testing::AssertionFailure() << "value " << i << " differs";
    }
  }
  return testing::AssertionSuccess();
}

// BF16 values that agree up to `steps` roundings of BF16 (2^-8 of the value each, so 2^-7 is one
// step at worst) plus `slack`.
inline testing::AssertionResult NearBf16(const std::vector<BFloat16>& actual,
                                         const std::vector<BFloat16>& expected, float slack,
                                         int steps = 1) {
  if (actual.size() != expected.size()) return testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < actual.size(); ++i) {
    const float a = ToFloat(actual[i]), e = ToFloat(expected[i]);
    if (!(std::fabs(a - e) <= static_cast<float>(steps) * 0x1p-7f * std::fabs(e) + slack)) {
      return testing::AssertionFailure() << "value " << i << " is " << a << ", want " << e;
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace conclave
