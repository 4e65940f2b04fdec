#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/bfloat16.h"
#include "common/fp8.h"
#include "kernels/device.h"
#include "kernels/packed_matrix.h"

namespace conclave {

// Every instruction set this machine runs: plain up to the detected one.
inline std::vector<CpuIsa> TestIsas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa :
       {CpuIsa::kPlain, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx}) {
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

inline PackedMatrix Pack(const std::vector<BFloat16>& rows, int64_t in_features,
                         WeightDtype dtype = WeightDtype::kBf16) {
  const MatrixRows part{rows.data(), static_cast<int64_t>(rows.size()) / in_features};
  return PackedMatrix::Pack({&part, 1}, in_features, nullptr, dtype);
}

// A random FP8 matrix with its blocks' scales, no NaN.
struct Fp8Matrix {
  Fp8Matrix(int64_t out, int64_t in, uint64_t seed, float scale)
      : out_features(out), in_features(in), values(out * in) {
    std::mt19937_64 generator(seed);
    for (uint8_t& value : values) {
      do value = static_cast<uint8_t>(generator());
      while ((value & 0x7f) == 0x7f);
    }
    // Random codes have a root mean square of about 100.
    std::uniform_real_distribution<float> uniform(scale / 200, scale / 100);
    scales.resize((out + 127) / 128 * ((in + 127) / 128));
    for (float& value : scales) value = uniform(generator);
  }

  Fp8Rows Rows() const { return {values.data(), scales.data(), out_features}; }
  PackedMatrix Packed() const {
    const Fp8Rows part = Rows();
    return PackedMatrix::PackFp8({&part, 1}, in_features, nullptr);
  }
  // value * scale in FP32, rounded once: what a reader that widens would give.
  std::vector<BFloat16> Widened() const {
    std::vector<BFloat16> widened(values.size());
    for (int64_t i = 0; i < out_features * in_features; ++i) {
      const int64_t block =
          i / in_features / 128 * ((in_features + 127) / 128) + i % in_features / 128;
      widened[i] = ToBFloat16(E4M3ToFloat(values[i]) * scales[block]);
    }
    return widened;
  }

  int64_t out_features, in_features;
  std::vector<uint8_t> values;
  std::vector<float> scales;
};

inline constexpr WeightDtype kTestDtypes[] = {WeightDtype::kBf16, WeightDtype::kInt8,
                                              WeightDtype::kInt4, WeightDtype::kFp8};

// A random matrix of any dtype, its values of about magnitude `scale`.
inline PackedMatrix RandomMatrix(WeightDtype dtype, int64_t out, int64_t in, uint64_t seed,
                                 float scale) {
  if (dtype == WeightDtype::kFp8) return Fp8Matrix(out, in, seed, scale).Packed();
  return Pack(RandomBf16(out * in, seed, scale), in, dtype);
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
