#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/device.h"

namespace conclave::cpu {

// The inner loops of an instruction set. One that this build does not hold gives the plain ones.
const CpuOps& OpsFor(CpuIsa isa);

// Calls fn(begin, end) on ranges that cover [0, count). Work of less than about 20 microseconds
// runs on the calling thread: waking another one takes 5 to 10.
inline void ForRange(const Device& device, int64_t count, double nanoseconds,
                     absl::FunctionRef<void(int64_t begin, int64_t end)> fn, int64_t grain = 1) {
  if (count <= 0) return;
  if (device.pool == nullptr || nanoseconds < 20'000) return fn(0, count);
  device.pool->ParallelFor(count, grain, fn);
}

// The same for work in the order of memory: long ranges first, which are streamed without a break,
// then ever shorter ones, so that the threads end together. Range i takes what is left divided by
// twice the threads.
inline void ForShrinkingRanges(const Device& device, int64_t count, double nanoseconds,
                               absl::FunctionRef<void(int64_t begin, int64_t end)> fn) {
  if (count <= 0) return;
  const int64_t share = device.pool == nullptr ? 1 : 2 * device.pool->num_threads();
  if (share <= 2 || nanoseconds < 20'000) return fn(0, count);
  auto length = [&](int64_t begin) { return std::max<int64_t>((count - begin) / share, 1); };
  int64_t num_ranges = 0;
  for (int64_t begin = 0; begin < count; begin += length(begin)) ++num_ranges;
  device.pool->ParallelFor(num_ranges, 1, [&](int64_t first, int64_t last) {
    int64_t begin = 0;
    for (int64_t i = 0; i < first; ++i) begin += length(begin);
    for (int64_t i = first; i < last; ++i) {
      const int64_t end = begin + length(begin);
      fn(begin, end);
      begin = end;
    }
  });
}

}  // namespace conclave::cpu
