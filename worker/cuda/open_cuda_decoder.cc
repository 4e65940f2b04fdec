#include "worker/cuda/open_cuda_decoder.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "expert_shard/cuda/memory_budget.h"
#include "expert_shard/cuda/open_cuda_experts.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/runtime.h"
#include "model/memory_plan.h"
#include "worker/cuda/cuda_decoder.h"
#include "worker/cuda/cuda_weights.h"

namespace conclave {
namespace {

absl::Status CheckShape(const Qwen3Config& config) {
  if (config.head_dim != 32 && config.head_dim != 64 && config.head_dim != 128) {
    return errors::OutOfRange("head_dim on a CUDA device", config.head_dim, "32, 64 or 128");
  }
  const int group = config.num_attention_heads / config.num_key_value_heads;
  if (group > cuda::kDecodeRows) {
    return errors::OutOfRange("query heads per key-value head on a CUDA device", group,
                              absl::StrCat("at most ", cuda::kDecodeRows));
  }
  if (config.NumSparseLayers() < config.num_hidden_layers && config.intermediate_size % 32 != 0) {
    return errors::OutOfRange("intermediate_size on a CUDA device", config.intermediate_size,
                              "a multiple of 32");
  }
  return CheckCudaExpertShape(config);
}

// What is to lie on the device, and the blocks of KV that the rest holds.
struct CudaPlan {
  MemoryPlan memory;
  CudaDecoderOptions decoder;
};

absl::StatusOr<CudaPlan> MakePlan(const DeviceDecoderRequest& request,
                                  const cuda::DeviceInfo& info) {
  const Qwen3Config& config = *request.config;
  constexpr int64_t kBlock = limits::kKvBlockTokens;
  const CudaMemoryBudget budget(info, request.memory_utilization);

  CudaPlan plan;
  plan.memory.worker_weight_bytes = CudaWeightBytes(config);
  plan.memory.expert_weight_bytes =
      CudaExpertBytes(config, static_cast<int>(request.expert_ids.size()));
  plan.memory.kv_bytes_per_token = KvBytesPerToken(config);
  plan.decoder.device = info.ordinal;
  plan.decoder.max_running = request.max_running;
  plan.decoder.max_step_tokens = request.max_step_tokens;
  plan.decoder.programmatic_launch = request.programmatic_launch;
  plan.decoder.deterministic = request.deterministic;
  plan.decoder.compute_major = info.compute_major;
  plan.decoder.max_context = config.MaxContext();
  plan.decoder.experts_here = !request.expert_ids.empty();
  plan.decoder.experts_elsewhere = request.experts != nullptr;
  // The workspace grows with the cache: it is counted for the largest that could be.
  const int64_t most = request.kv_cache_tokens > 0
                           ? request.kv_cache_tokens
                           : int64_t{request.max_running} * config.MaxContext();
  const int64_t for_kv = std::max<int64_t>(0, budget.bytes() - plan.memory.TotalBytes());
  plan.decoder.num_kv_blocks =
      std::min((most + kBlock - 1) / kBlock, for_kv / (plan.memory.kv_bytes_per_token * kBlock));
  plan.memory.workspace_bytes = CudaWorkspaceBytes(config, plan.decoder);
  if (request.serve_experts) plan.memory.workspace_bytes += CudaExpertWorkspaceBytes(config);
  const int64_t left = std::max<int64_t>(0, budget.bytes() - plan.memory.TotalBytes());
  const int64_t blocks = left / (plan.memory.kv_bytes_per_token * kBlock);
  const int64_t wanted = request.kv_cache_tokens > 0
                             ? (request.kv_cache_tokens + kBlock - 1) / kBlock
                             : std::max<int64_t>(1, std::min(blocks, plan.decoder.num_kv_blocks));
  plan.decoder.num_kv_blocks = wanted;
  plan.memory.kv_tokens = wanted * kBlock;
  RETURN_IF_ERROR(budget.CheckFits(plan.memory));
  return plan;
}

}  // namespace

absl::StatusOr<DeviceDecoder> OpenCudaDecoder(const DeviceDecoderRequest& request) {
  const Qwen3Config& config = *request.config;
  ASSIGN_OR_RETURN(const int ordinal, cuda::ParseCudaDevice(request.device));
  ASSIGN_OR_RETURN(const cuda::DeviceInfo info, cuda::QueryDevice(ordinal));
  RETURN_IF_ERROR(CheckShape(config));
  if (request.programmatic_launch && info.compute_major < 9) {
    return errors::OutOfRange("compute capability for programmatic_launch", info.compute_major,
                              "at least 9 (Hopper)");
  }
  // Before the weights, which take minutes.
  if (!request.deterministic) RETURN_IF_ERROR(cuda::CublasLtLibrary::Get().status());
  ASSIGN_OR_RETURN(const CudaPlan plan, MakePlan(request, info));
  request.progress(absl::StrCat(info.ToString(), ": ", plan.memory.ToString()));
  const auto progress = [&](size_t done, size_t total) {
    request.progress(absl::StrCat("weights: ", done >> 20, " of ", total >> 20, " MiB"));
    return true;
  };
  ASSIGN_OR_RETURN(CudaWeights weights,
                   LoadCudaWeights(request.checkpoint, config, request.expert_ids, progress));
  DeviceDecoder opened;
  if (request.serve_experts) {
    ASSIGN_OR_RETURN(opened.served_experts,
                     MakeCudaExpertRunner(config, weights.experts, info.ordinal,
                                          !request.deterministic && info.compute_major == 9));
  }
  ASSIGN_OR_RETURN(opened.decoder,
                   CudaDecoder::Create(config, std::move(weights), plan.decoder, request.experts));
  opened.num_kv_blocks = plan.decoder.num_kv_blocks;
  return opened;
}

}  // namespace conclave
