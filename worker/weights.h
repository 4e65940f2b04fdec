#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/thread_pool.h"
#include "common/weight_dtype.h"
#include "kernels/packed_matrix.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"
#include "model/weight_reader.h"

namespace conclave {

// One decoder layer's weights that a worker holds: all but the experts. Norms are FP32 copies.
struct LayerWeights {
  std::vector<float> input_layernorm;           // [hidden_size]
  PackedMatrix qkv_proj;                        // q_proj over k_proj over v_proj
  std::vector<float> q_norm, k_norm;            // [head_dim]
  PackedMatrix o_proj;                          // [hidden_size, num_attention_heads * head_dim]
  std::vector<float> post_attention_layernorm;  // [hidden_size]
  PackedMatrix gate;                            // [num_experts, hidden_size]; sparse layers only
  PackedMatrix gate_up_proj;                    // [2 * intermediate_size, hidden_size]; dense only
  PackedMatrix down_proj;                       // [hidden_size, intermediate_size]; dense only
};

struct WorkerWeights {
  // Row-major [vocab_size, hidden_size]: rows are looked up, so it stays in the mapped checkpoint.
  std::optional<MatrixSource> embed_tokens;
  std::vector<LayerWeights> layers;
  std::vector<float> norm;  // [hidden_size]
  PackedMatrix lm_head;     // [vocab_size, hidden_size]
};

// Reads and packs what the worker needs, matrices as `dtype` (see weight_loader.h; the gate stays
// BF16). The checkpoint must outlive the result. `progress` hears of each layer done, from 1 to
// num_hidden_layers. DataLoss naming part and tensor.
absl::StatusOr<WorkerWeights> LoadWorkerWeights(const Checkpoint& checkpoint,
                                                const Qwen3Config& config, WeightDtype dtype,
                                                ThreadPool* pool,
                                                const std::function<void(int, int)>& progress);

}  // namespace conclave
