#include "worker/cuda/open_cuda_decoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cuda/runtime.h"
#include "model/memory_plan.h"
#include "worker/cuda/cuda_decoder.h"
#include "worker/cuda/cuda_weights.h"

namespace conclave {
namespace {

constexpr uint64_t kDummySeed = 1;

absl::Status CheckShape(const Qwen3Config& config) {
  if (config.head_dim != 32 && config.head_dim != 64 && config.head_dim != 128) {
    return errors::OutOfRange("head_dim on a CUDA device", config.head_dim, "32, 64 or 128");
  }
  const int group = config.num_attention_heads / config.num_key_value_heads;
  if (group > cuda::kDecodeRows) {
    return errors::OutOfRange("query heads per key-value head on a CUDA device", group,
                              absl::StrCat("at most ", cuda::kDecodeRows));
  }
  for (const auto& [name, size] :
       {std::pair<const char*, int>{"hidden_size", config.hidden_size},
        {"intermediate_size",
         config.NumSparseLayers() < config.num_hidden_layers ? config.intermediate_size : 32},
        {"moe_intermediate_size", config.num_experts > 0 ? config.moe_intermediate_size : 32}}) {
    if (size % 32 != 0) {
      return errors::OutOfRange(absl::StrCat(name, " on a CUDA device"), size, "a multiple of 32");
    }
  }
  return absl::OkStatus();
}

// What is to lie on the device, and the blocks of KV that the rest holds.
struct CudaPlan {
  MemoryPlan memory;
  CudaDecoderOptions decoder;
};

absl::StatusOr<CudaPlan> MakePlan(const DeviceDecoderRequest& request, bool with_experts,
                                  const cuda::DeviceInfo& info) {
  const Qwen3Config& config = *request.config;
  constexpr int64_t kBlock = limits::kKvBlockTokens;
  const int64_t in_use = info.total_bytes - info.free_bytes;
  const auto share =
      static_cast<int64_t>(request.memory_utilization * static_cast<double>(info.total_bytes));
  const int64_t budget = std::max<int64_t>(0, share - in_use);

  CudaPlan plan;
  plan.memory.worker_weight_bytes = CudaWeightBytes(config, /*with_experts=*/false);
  plan.memory.expert_weight_bytes =
      CudaWeightBytes(config, with_experts) - plan.memory.worker_weight_bytes;
  plan.memory.kv_bytes_per_token = KvBytesPerToken(config);
  plan.decoder.device = info.ordinal;
  plan.decoder.max_running = request.max_running;
  plan.decoder.max_step_tokens = request.max_step_tokens;
  plan.decoder.max_context = config.MaxContext();
  // The workspace grows with the cache: it is counted for the largest that could be.
  const int64_t most = request.kv_cache_tokens > 0
                           ? request.kv_cache_tokens
                           : int64_t{request.max_running} * config.MaxContext();
  const int64_t for_kv = std::max<int64_t>(0, budget - plan.memory.TotalBytes());
  plan.decoder.num_kv_blocks =
      std::min((most + kBlock - 1) / kBlock, for_kv / (plan.memory.kv_bytes_per_token * kBlock));
  plan.memory.workspace_bytes = CudaWorkspaceBytes(config, plan.decoder);
  const int64_t left = std::max<int64_t>(0, budget - plan.memory.TotalBytes());
  const int64_t blocks = left / (plan.memory.kv_bytes_per_token * kBlock);
  const int64_t wanted = request.kv_cache_tokens > 0
                             ? (request.kv_cache_tokens + kBlock - 1) / kBlock
                             : std::max<int64_t>(1, std::min(blocks, plan.decoder.num_kv_blocks));
  plan.decoder.num_kv_blocks = wanted;
  plan.memory.kv_tokens = wanted * kBlock;
  const absl::Status fits = CheckFits(plan.memory, budget);
  if (fits.ok()) return plan;
  return absl::Status(fits.code(),
                      absl::StrCat(fits.message(), "; that is ", request.memory_utilization,
                                   " (--gpu_memory_utilization) of ", info.total_bytes >> 20,
                                   " MiB on ", info.name, " less ", in_use >> 20, " MiB in use"));
}

}  // namespace

absl::StatusOr<DeviceDecoder> OpenCudaDecoder(const DeviceDecoderRequest& request) {
  const Qwen3Config& config = *request.config;
  ASSIGN_OR_RETURN(const int ordinal, cuda::ParseCudaDevice(request.device));
  ASSIGN_OR_RETURN(const cuda::DeviceInfo info, cuda::QueryDevice(ordinal));
  RETURN_IF_ERROR(CheckShape(config));
  const bool with_experts = config.num_experts > 0 && request.experts == nullptr;
  ASSIGN_OR_RETURN(const CudaPlan plan, MakePlan(request, with_experts, info));
  request.progress(absl::StrCat(info.ToString(), ": ", plan.memory.ToString()));
  CudaWeights weights;
  if (request.checkpoint == nullptr) {
    ASSIGN_OR_RETURN(weights, MakeDummyCudaWeights(config, with_experts, kDummySeed));
  } else {
    const auto progress = [&](int64_t done, int64_t total) {
      request.progress(absl::StrCat("weights: ", done >> 20, " of ", total >> 20, " MiB"));
    };
    ASSIGN_OR_RETURN(weights, LoadCudaWeights(*request.checkpoint, config, with_experts, progress));
  }
  DeviceDecoder opened;
  ASSIGN_OR_RETURN(opened.decoder,
                   CudaDecoder::Create(config, std::move(weights), plan.decoder, request.experts));
  opened.num_kv_blocks = plan.decoder.num_kv_blocks;
  return opened;
}

}  // namespace conclave
