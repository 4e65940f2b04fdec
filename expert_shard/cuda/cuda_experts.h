#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "expert_shard/cuda/device_weights.h"
#include "expert_shard/expert_runner.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/runtime.h"
#include "model/qwen3_config.h"

namespace conclave {

// One matrix for each expert of expert_ids, in that order; none in a dense layer.
struct CudaExpertLayer {
  cuda::DeviceMatrix gate_up_proj;  // gate_proj over up_proj
  cuda::DeviceMatrix down_proj;
};

// The same experts of every sparse layer, on a device. Read by any number of streams.
struct CudaExperts {
  std::vector<int> expert_ids;          // rising global ids
  std::vector<CudaExpertLayer> layers;  // [num_hidden_layers]
  int64_t bytes = 0;
  std::vector<cuda::DeviceMemory> memory;  // what the layers point into
};

// Device memory that `num_experts` experts of every sparse layer take.
int64_t CudaExpertBytes(const Qwen3Config& config, int num_experts);

// Blocks until all is there. `progress` may be empty. Errors: InvalidArgument
// (ExpertRunner::CheckExpertIds), those of `source`, ResourceExhausted (device memory), Cancelled.
absl::StatusOr<std::shared_ptr<const CudaExperts>> LoadCudaExperts(DeviceWeightSource& source,
                                                                   const Qwen3Config& config,
                                                                   absl::Span<const int> expert_ids,
                                                                   const LoadProgress& progress);

// Device memory of a CudaExpertRunner beside the weights: the rows, intermediates and results of
// the most pairs that are run at once.
int64_t CudaExpertWorkspaceBytes(const Qwen3Config& config);

// Runs experts on a GPU for callers whose rows are in host memory: a shard, and the shard's part of
// a worker. Rows go in and out through pinned buffers on a stream of its own. The kernels are those
// of the worker's decoder, so a pair's bits are too. `may_use_wgmma`: as of DeviceExpertFfnArgs.
absl::StatusOr<std::unique_ptr<ExpertRunner>> MakeCudaExpertRunner(
    const Qwen3Config& config, std::shared_ptr<const CudaExperts> experts, int device,
    bool may_use_wgmma);

}  // namespace conclave
