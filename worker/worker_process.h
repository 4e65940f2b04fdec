#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/cpu_placement.h"
#include "common/limits.h"
#include "worker/worker_runtime.h"

namespace conclave {

struct WorkerProcessOptions {
  WorkerRuntimeOptions runtime;  // its cpus are set from `placement`
  CpuPlacementOptions placement;
  std::string listen = "127.0.0.1:50051";
  std::string metrics_listen = "127.0.0.1:0";
  absl::Duration drain = limits::kDefaultDrainDeadline;
};

// Binds, loads, serves until SIGTERM or SIGINT, drains. Errors of any start step: InvalidArgument
// (a flag), NotFound or DataLoss (the checkpoint), ResourceExhausted (memory, with the
// arithmetic), Unavailable (a port in use). Internal while it serves: the device failed; health
// said so, and what was in flight ended Unavailable, to be taken up by another worker.
absl::Status RunWorkerProcess(const WorkerProcessOptions& options);

}  // namespace conclave
