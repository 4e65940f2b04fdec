#include "expert_shard/cuda/open_cuda_experts.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "expert_shard/cuda/cuda_experts.h"
#include "expert_shard/cuda/memory_budget.h"
#include "kernels/cuda/runtime.h"
#include "model/memory_plan.h"

namespace conclave {

absl::Status CheckCudaExpertShape(const Qwen3Config& config) {
  // A dense model has no width of experts.
  const int width = config.num_experts > 0 ? config.moe_intermediate_size : 0;
  for (const auto& [name, size] : {std::pair<const char*, int>{"hidden_size", config.hidden_size},
                                   {"moe_intermediate_size", width}}) {
    if (size % 32 != 0) {
      return errors::OutOfRange(absl::StrCat(name, " on a CUDA device"), size, "a multiple of 32");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ExpertRunner>> OpenCudaExperts(const DeviceExpertsRequest& request) {
  const Qwen3Config& config = *request.config;
  ASSIGN_OR_RETURN(const int ordinal, cuda::ParseCudaDevice(request.device));
  ASSIGN_OR_RETURN(const cuda::DeviceInfo info, cuda::QueryDevice(ordinal));
  RETURN_IF_ERROR(ExpertRunner::CheckExpertIds(config, request.expert_ids));
  RETURN_IF_ERROR(CheckCudaExpertShape(config));
  MemoryPlan plan;
  plan.expert_weight_bytes = CudaExpertBytes(config, static_cast<int>(request.expert_ids.size()));
  plan.workspace_bytes = CudaExpertWorkspaceBytes(config);
  const CudaMemoryBudget budget(info, request.memory_utilization);
  RETURN_IF_ERROR(budget.CheckFits(plan));
  request.say(absl::StrCat(info.ToString(), ": ", plan.ToString()));
  ASSIGN_OR_RETURN(const std::unique_ptr<DeviceWeightSource> source,
                   OpenWeightSource(request.checkpoint));
  ASSIGN_OR_RETURN(std::shared_ptr<const CudaExperts> experts,
                   LoadCudaExperts(*source, config, request.expert_ids, request.progress));
  return MakeCudaExpertRunner(config, std::move(experts), info.ordinal,
                              !request.deterministic && info.compute_major == 9);
}

}  // namespace conclave
