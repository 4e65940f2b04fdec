#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/runtime.h"
#include "model/memory_plan.h"

namespace conclave {

// What a process may fill of a GPU: its share of all memory, less what is in use already.
class CudaMemoryBudget {
 public:
  CudaMemoryBudget(const cuda::DeviceInfo& info, double memory_utilization);

  int64_t bytes() const { return bytes_; }
  // ResourceExhausted with the arithmetic of both.
  absl::Status CheckFits(const MemoryPlan& plan) const;

 private:
  const cuda::DeviceInfo info_;
  const double memory_utilization_;
  const int64_t in_use_;
  const int64_t bytes_;
};

}  // namespace conclave
