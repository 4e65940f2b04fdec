#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "common/fp8.h"
#include "kernels/cuda/linear.h"
#include "tests/kernels/kernel_test_support.h"

namespace conclave::cuda {

// Matrices of one shape on the host, in a device's format and widened to BF16.
struct HostMatrices {
  WeightFormat format = WeightFormat::kBf16;
  int64_t out_features = 0, in_features = 0;
  int count = 1;
  std::vector<BFloat16> bf16;  // [count, out, in]: the values themselves, or FP8's widened
  std::vector<uint8_t> fp8;    // [count, out, in]
  std::vector<float> scales;   // [count, ceil(out / 128), ceil(in / 128)]

  PackedMatrix Packed(int index) const {
    const int64_t size = out_features * in_features;
    return Pack({bf16.begin() + index * size, bf16.begin() + (index + 1) * size}, in_features);
  }
};

inline HostMatrices RandomMatrices(WeightFormat format, int count, int64_t out_features,
                                   int64_t in_features, uint64_t seed) {
  HostMatrices matrices{format, out_features, in_features, count, {}, {}, {}};
  const int64_t size = out_features * in_features;
  // Results stay near 1, so that one tolerance serves all sizes.
  const float deviation = 1 / std::sqrt(static_cast<float>(in_features));
  if (format == WeightFormat::kBf16) {
    matrices.bf16 = RandomBf16(count * size, seed, deviation);
    return matrices;
  }
  std::mt19937_64 generator(seed);
  const int64_t rows = (out_features + 127) / 128, columns = (in_features + 127) / 128;
  std::uniform_real_distribution<float> scale(0.2f * deviation, deviation);
  for (int64_t i = 0; i < count * rows * columns; ++i) matrices.scales.push_back(scale(generator));
  for (int64_t i = 0; i < count * size; ++i) {
    // Below 4 in size, with zeros and denormals; never NaN (0x7f, 0xff).
    matrices.fp8.push_back(static_cast<uint8_t>((generator() & 0x80) | generator() % 0x48));
    const int64_t row = i % size / in_features, column = i % in_features;
    const float s = matrices.scales[(i / size * rows + row / 128) * columns + column / 128];
    matrices.bf16.push_back(ToBFloat16(E4M3ToFloat(matrices.fp8.back()) * s));
  }
  return matrices;
}

}  // namespace conclave::cuda
