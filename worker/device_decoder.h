#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "expert_shard/expert_runner.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"
#include "worker/decoder.h"
#include "worker/expert_exchange.h"

namespace conclave {

// What a worker asks of a device that is not the CPU. Pointers are borrowed; config and experts for
// the decoder's life.
struct DeviceDecoderRequest {
  std::string device;  // as --device has it
  const Qwen3Config* config = nullptr;
  const Checkpoint* checkpoint = nullptr;  // null: made-up weights
  std::vector<int> expert_ids;             // on the device; rising global ids
  ExpertExchange* experts = nullptr;       // of the other experts; null: there are none
  bool serve_experts = false;              // to other workers too
  double memory_utilization = 0.9;         // share of the device's memory to use
  int64_t kv_cache_tokens = 0;             // 0: what is left
  int max_running = 0;
  int max_step_tokens = 0;
  bool programmatic_launch = false;  // kernels begin while the ones before them end
  // False: what is faster may be used, also if a row's bits then depend on the batch.
  bool deterministic = true;
  std::function<void(absl::string_view)> progress;
};

struct DeviceDecoder {
  std::unique_ptr<StepDecoder> decoder;
  std::unique_ptr<ExpertRunner> served_experts;  // those on the device; with serve_experts
  int64_t num_kv_blocks = 0;
};

// main.cc passes in what its build has, so that the worker's library needs no device's. Errors:
// InvalidArgument (no such device, a shape it does not take), FailedPrecondition (no device here,
// or no library that deterministic=false wants), ResourceExhausted (memory, with the arithmetic),
// DataLoss (the checkpoint), Internal.
using OpenDeviceDecoder =
    std::function<absl::StatusOr<DeviceDecoder>(const DeviceDecoderRequest& request)>;

}  // namespace conclave
