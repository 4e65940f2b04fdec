#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "expert_shard/device_experts.h"
#include "model/qwen3_config.h"

namespace conclave {

// InvalidArgument if the kernels do not take the experts' shape.
absl::Status CheckCudaExpertShape(const Qwen3Config& config);

// The OpenDeviceExperts of "cuda" and "cuda:N". What the device may hold is memory_utilization of
// its memory less what is in use already.
absl::StatusOr<std::unique_ptr<ExpertRunner>> OpenCudaExperts(const DeviceExpertsRequest& request);

}  // namespace conclave
