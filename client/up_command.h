#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/supervisor.h"
#include "model/qwen3_config.h"

namespace conclave {

struct UpOptions {
  std::string model;  // checkpoint folder
  int workers = 1;
  int shards = 0;                  // 0: each worker runs the experts itself
  std::string host = "127.0.0.1";  // of the router; everything else stays on 127.0.0.1
  int grpc_port = 0;               // of the router; 0: any free one
  int http_port = 0;               // of the router; 0: any free one
  int threads = 0;                 // of all processes; 0: one per core
  int64_t kv_cache_tokens = 0;     // per worker; 0: the worker's default
  int max_running = 0;             // sequences per worker; 0: the worker's default
  bool prefix_cache = true;
  bool prefill_ahead = true;
  std::string cpu_isa = "auto";
  std::string expert_transport = "auto";  // between workers and shards
  std::string shared_memory = "auto";     // the same: auto or off
  std::string micro_batch = "auto";       // of workers: auto, off or on
  std::string weight_dtype = "auto";      // of workers and shards
  std::vector<int> numa_nodes;  // the processes of a tier take turns on them; empty: anywhere
  std::string model_name;       // empty: the folder's name
  std::string chat_template = "auto";
  std::string log_dir;
  std::string log_level = "info";
  std::string log_format = "text";
  int drain_seconds = 30;
  int ready_seconds = 600;
  std::string bin_dir;  // where the servers are; empty: beside this program
};

// Threads of each process. While a layer's experts run the worker waits, so worker and shards take
// turns at the same cores. The workers divide all of them. Each shard has as many as there are: the
// pairs of a layer never divide evenly over the shards, and the one that has more goes on with all
// cores when the others are done and sleep.
struct ThreadShare {
  int worker = 1;
  int shard = 1;
};
ThreadShare DivideThreads(int threads, int workers);

// What `up` starts for a model. InvalidArgument: a dense model with shards, more shards than
// experts.
absl::StatusOr<std::vector<ProcessTier>> PlanProcesses(const UpOptions& options,
                                                       const Qwen3Config& config);

// Unavailable naming the address if nothing can listen on host:port now. Port 0 is always free.
absl::Status CheckPortIsFree(const std::string& host, int port);

// `conclave up`: runs the cluster until SIGINT or SIGTERM. The errors of PlanProcesses,
// LoadQwen3Config, CheckPortIsFree and Supervisor::Run.
absl::Status RunUp(const UpOptions& options);

}  // namespace conclave
