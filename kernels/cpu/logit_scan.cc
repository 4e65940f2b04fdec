#include "kernels/cpu/logit_scan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/bfloat16.h"
#include "kernels/cpu/plain_exp.h"

namespace conclave::cpu {
namespace {

#include "kernels/cpu/vec_plain.inc"

CONCLAVE_INLINE bool AnySet(Int4 mask) {
  uint64_t halves[2];
  __builtin_memcpy(halves, &mask, sizeof(halves));
  return (halves[0] | halves[1]) != 0;
}

CONCLAVE_INLINE bool AnyNotFinite(F32x16 x) {
  Int4 found = {};
  CONCLAVE_FOR4(i) found |= ((Uint4)x.v[i] & 0x7f800000u) == 0x7f800000u;
  return AnySet(found);
}

CONCLAVE_INLINE bool AnyAbove(F32x16 x, float threshold) {
  Int4 found = {};
  CONCLAVE_FOR4(i) found |= x.v[i] > threshold;
  return AnySet(found);
}

}  // namespace

int64_t FirstNotFinite(const float* values, int64_t size) {
  int64_t i = 0;
  while (i + 16 <= size && !AnyNotFinite(Load(values + i))) i += 16;
  while (i < size && std::isfinite(values[i])) ++i;
  return i < size ? i : -1;
}

float MaxOf(const float* values, int64_t size) {
  F32x16 max = Set1(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
    const F32x16 x = Load(values + i);
    max = SelectLess(max, x, x, max);
  }
  float result = ReduceMax(max);
  for (; i < size; ++i) result = std::max(result, values[i]);
  return result;
}

std::vector<Candidate> Largest(const float* values, int64_t size, int64_t count) {
  count = std::min(count, size);
  std::vector<Candidate> kept;
  if (count <= 0) return kept;
  // Keeps up to twice `count` candidates; when full, drops the lower half and lets in only what is
  // above the worst that stayed. An equal value that comes later has a higher id: it may be
  // refused.
  const size_t capacity = static_cast<size_t>(std::max<int64_t>(2 * count, 256));
  kept.reserve(capacity);
  float threshold = -std::numeric_limits<float>::infinity();
  bool full = false;  // from the first time on that `count` candidates were kept
  auto shrink = [&] {
    std::nth_element(kept.begin(), kept.begin() + (count - 1), kept.end(), Before);
    kept.resize(count);
    threshold = kept[count - 1].value;
    full = true;
  };
  for (int64_t i = 0; i < size;) {
    if (full && i + 16 <= size && !AnyAbove(Load(values + i), threshold)) {
      i += 16;
      continue;
    }
    for (const int64_t end = std::min(i + 16, size); i < end; ++i) {
      if (full && !(values[i] > threshold)) continue;
      kept.push_back({values[i], static_cast<uint32_t>(i)});
      if (kept.size() == capacity) shrink();
    }
  }
  if (kept.size() > static_cast<size_t>(count)) shrink();
  std::sort(kept.begin(), kept.end(), Before);
  return kept;
}

double SumOf(const float* values, int64_t size) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= size; i += 4) {
    for (int j = 0; j < 4; ++j) sums[j] += values[i + j];
  }
  for (; i < size; ++i) sums[0] += values[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

double LogSumExp(const float* values, int64_t size) {
  constexpr int64_t kChunk = 1024;
  float weights[kChunk];
  const float max = MaxOf(values, size);
  double sum = 0;
  for (int64_t i = 0; i < size; i += kChunk) {
    const int64_t n = std::min(kChunk, size - i);
    PlainExpRow(values + i, n, max, 1, weights);
    sum += SumOf(weights, n);
  }
  return max + std::log(sum);
}

}  // namespace conclave::cpu
