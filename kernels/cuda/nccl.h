#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/nccl_api.h"

namespace conclave::cuda {

// NCCL on the GPU `device`. libnccl.so.2 is looked for now. FailedPrecondition: it is not there or
// too old, or there is no such GPU.
absl::StatusOr<std::unique_ptr<NcclApi>> OpenNccl(int device);

// The same by the value of --device. FailedPrecondition also for "cpu".
absl::StatusOr<std::unique_ptr<NcclApi>> OpenNccl(const std::string& device);

}  // namespace conclave::cuda
