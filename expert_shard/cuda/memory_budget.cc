#include "expert_shard/cuda/memory_budget.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace conclave {

CudaMemoryBudget::CudaMemoryBudget(const cuda::DeviceInfo& info, double memory_utilization)
    : info_(info),
      memory_utilization_(memory_utilization),
      in_use_(info.total_bytes - info.free_bytes),
      bytes_(std::max<int64_t>(
          0, static_cast<int64_t>(memory_utilization * static_cast<double>(info.total_bytes)) -
                 in_use_)) {}

absl::Status CudaMemoryBudget::CheckFits(const MemoryPlan& plan) const {
  const absl::Status fits = conclave::CheckFits(plan, bytes_);
  if (fits.ok()) return fits;
  return absl::Status(fits.code(),
                      absl::StrCat(fits.message(), "; that is ", memory_utilization_,
                                   " (--gpu_memory_utilization) of ", info_.total_bytes >> 20,
                                   " MiB on ", info_.name, " less ", in_use_ >> 20, " MiB in use"));
}

}  // namespace conclave
