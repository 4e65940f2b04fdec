#pragma once

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

}  // namespace conclave::cpu
