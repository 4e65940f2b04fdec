#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "expert_shard/cuda/cuda_experts.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/runtime.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"

namespace conclave {

// One decoder layer on the device. Norms are FP32 copies, as on the CPU.
struct CudaLayerWeights {
  const float* input_layernorm = nullptr;           // [hidden_size]
  const float* post_attention_layernorm = nullptr;  // [hidden_size]
  const float* q_norm = nullptr;                    // [head_dim]
  const float* k_norm = nullptr;                    // [head_dim]
  cuda::DeviceMatrix qkv_proj;                      // q_proj over k_proj over v_proj
  cuda::DeviceMatrix o_proj;
  cuda::DeviceMatrix gate;          // sparse layers only
  cuda::DeviceMatrix gate_up_proj;  // dense layers only
  cuda::DeviceMatrix down_proj;     // dense layers only
};

struct CudaWeights {
  const BFloat16* embed_tokens = nullptr;  // [vocab_size, hidden_size]
  const float* norm = nullptr;             // [hidden_size]
  cuda::DeviceMatrix lm_head;              // [vocab_size, hidden_size]; embed_tokens if tied
  std::vector<CudaLayerWeights> layers;
  std::vector<cuda::DeviceMemory> memory;      // what the above point into
  std::shared_ptr<const CudaExperts> experts;  // those on this device; null: none
};

// Bytes of a worker's weights but the experts; see CudaExpertBytes.
int64_t CudaWeightBytes(const Qwen3Config& config);

// The worker's weights and those of `expert_ids` (rising; may be empty), from the checkpoint or,
// if that is null, made up (device_weights.h). Blocks until all is there.
// Errors: DataLoss (the checkpoint), ResourceExhausted (device memory), Internal (CUDA), Cancelled
// (progress said so).
absl::StatusOr<CudaWeights> LoadCudaWeights(const Checkpoint* checkpoint, const Qwen3Config& config,
                                            absl::Span<const int> expert_ids,
                                            const LoadProgress& progress);

}  // namespace conclave
