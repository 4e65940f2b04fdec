#pragma once

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "common/limits.h"

namespace conclave {

struct WorkerProcessOptions {
  std::string model_dir;
  std::string listen = "127.0.0.1:50051";
  std::string metrics_listen = "127.0.0.1:0";
  std::vector<std::string> shards;  // gRPC targets; empty: every expert in process
  std::string local_experts;        // "0-31,40": in process, beside the shards
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::string cpu_isa = "auto";
  int64_t kv_cache_tokens = 0;  // 0: from the free memory
  int max_running = limits::kDefaultMaxRunningSequences;
  int max_waiting = limits::kDefaultMaxWaitingSequences;
  int max_step_tokens = limits::kDefaultMaxStepTokens;
  double shard_wait_seconds = absl::ToDoubleSeconds(limits::kDefaultShardWait);
  double drain_seconds = absl::ToDoubleSeconds(limits::kDefaultDrainDeadline);
};

// Binds, loads, serves until SIGTERM or SIGINT, drains. Errors of any start step: InvalidArgument
// (a flag), DataLoss (the checkpoint), ResourceExhausted (memory, with the arithmetic),
// Unavailable (a port in use).
absl::Status RunWorkerProcess(const WorkerProcessOptions& options);

}  // namespace conclave
