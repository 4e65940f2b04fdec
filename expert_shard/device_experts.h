#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "expert_shard/expert_runner.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"

namespace conclave {

// What a shard asks of a device that is not the CPU. Pointers are borrowed for the call.
struct DeviceExpertsRequest {
  std::string device;  // as --device has it
  const Qwen3Config* config = nullptr;
  const Checkpoint* checkpoint = nullptr;  // null: made-up weights
  std::vector<int> expert_ids;             // rising global ids
  double memory_utilization = 0.9;         // share of the device's memory to use
  // False: what is faster may be used, also if a pair's bits then depend on the batch.
  bool deterministic = true;
  std::function<void(absl::string_view)> say;
  LoadProgress progress = {};  // may be empty
};

// main.cc passes in what its build has, so that the shard's library needs no device's. Errors:
// InvalidArgument (no such device, a shape it does not take), FailedPrecondition (no device here),
// ResourceExhausted (memory, with the arithmetic), DataLoss (the checkpoint), Internal, Cancelled
// (progress said so).
using OpenDeviceExperts = std::function<absl::StatusOr<std::unique_ptr<ExpertRunner>>(
    const DeviceExpertsRequest& request)>;

}  // namespace conclave
