#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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
  cuda::DeviceMatrix gate;                 // sparse layers only
  cuda::DeviceMatrix gate_up_proj;         // dense layers only
  cuda::DeviceMatrix down_proj;            // dense layers only
  cuda::DeviceMatrix expert_gate_up_proj;  // sparse layers whose experts are on this device:
  cuda::DeviceMatrix expert_down_proj;     // num_experts matrices
};

struct CudaWeights {
  const BFloat16* embed_tokens = nullptr;  // [vocab_size, hidden_size]
  const float* norm = nullptr;             // [hidden_size]
  cuda::DeviceMatrix lm_head;              // [vocab_size, hidden_size]; embed_tokens if tied
  std::vector<CudaLayerWeights> layers;
  std::vector<cuda::DeviceMemory> memory;  // what the above point into
};

// In bytes, from 0 to the total.
using CudaLoadProgress = std::function<void(int64_t done, int64_t total)>;

// Bytes that LoadCudaWeights will take, but for what each allocation is rounded up by.
int64_t CudaWeightBytes(const Qwen3Config& config, bool with_experts);

// Streams the weights from the mapped checkpoint through two pinned buffers, one being filled while
// the other is copied. FP8 projections stay FP8 where their blocks of 128 rows do not cross a seam
// between stacked weights; all else is BF16. Blocks until all is there.
// Errors: DataLoss (the checkpoint), ResourceExhausted (device memory), Internal (CUDA).
absl::StatusOr<CudaWeights> LoadCudaWeights(const Checkpoint& checkpoint, const Qwen3Config& config,
                                            bool with_experts, const CudaLoadProgress& progress);

// The same shapes and formats with seeded random values, filled in place.
absl::StatusOr<CudaWeights> MakeDummyCudaWeights(const Qwen3Config& config, bool with_experts,
                                                 uint64_t seed);

}  // namespace conclave
