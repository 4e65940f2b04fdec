#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/plan_device.h"
#include "client/roofline.h"
#include "common/weight_dtype.h"
#include "model/memory_plan.h"
#include "model/qwen3_config.h"

namespace conclave {

struct PlanQuestion {
  std::string model_name;                  // for people
  std::string model_dir;                   // for the commands; empty: a placeholder
  Qwen3Config config;                      // quantization: of the checkpoint
  WeightDtype dtype = WeightDtype::kBf16;  // that weights are kept in; of GPUs the checkpoint's
  PlanDevice device;
  int num_devices = 1;
  int64_t context = 1024;            // tokens of KV of each sequence
  int64_t batch = 1;                 // sequences at a time
  double memory_utilization = 0.92;  // share of the memory that Conclave may take
  double hop_us = 10;                // one way between attention and experts on other devices
};

// What one device is to hold, in bytes.
struct DevicePlan {
  std::vector<int> experts;  // of every sparse layer; rising
  int64_t attention = 0;     // projections, and the MLP of dense layers
  int64_t expert_weights = 0;
  int64_t other_weights = 0;  // embeddings, LM head, gates, norms
  int64_t workspace = 0;
  int64_t kv = 0;      // what is left, in whole KV blocks
  int64_t usable = 0;  // memory times memory_utilization
  int64_t kv_tokens = 0;
  int64_t Weights() const { return attention + expert_weights + other_weights; }
};

// The program of one process and its flags.
struct PlannedProcess {
  std::string name;
  std::vector<std::string> argv;
};

struct DeploymentPlan {
  absl::Status fits;    // ResourceExhausted with the arithmetic
  BytesByKind weights;  // one copy
  std::vector<DevicePlan> devices;
  int64_t kv_bytes_per_token = 0;
  int64_t kv_tokens = 0;  // of all devices
  int least_devices = 0;  // with which it would fit; 0: no number does
  double wire_bytes_per_step = 0;

  // Where a device is lost and the rest is to serve alone.
  bool survivors_fit = false;  // with all experts among them
  int64_t survivors_kv_tokens = 0;
};

// Both roles on each device: a worker with all attention weights, and a shard with an equal part of
// the experts. A dense model has a whole copy on each. InvalidArgument: a number out of range, or
// more devices than experts.
absl::StatusOr<DeploymentPlan> PlanDeployment(const PlanQuestion& question);

// The processes of a plan that fits, with flags that today's programs take; targets are on this
// machine for GPUs, and on hosts named host-0, host-1, ... for CPU servers. They are to be started
// in this order. With GPUs one process has both roles of a card.
std::vector<PlannedProcess> PlannedProcesses(const PlanQuestion& question,
                                             const DeploymentPlan& plan);
// The same as one command; empty but for one CPU server: `conclave up` knows no GPUs.
std::vector<std::string> PlannedUpCommand(const PlanQuestion& question, const DeploymentPlan& plan);

}  // namespace conclave
