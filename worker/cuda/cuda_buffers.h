#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/runtime.h"
#include "model/qwen3_config.h"
#include "worker/cuda/cuda_decoder.h"
#include "worker/cuda/cuda_sampler.h"

namespace conclave {

// One array of what is copied to the device each step, on both sides.
template <typename T>
struct StepArray {
  T* host = nullptr;
  T* device = nullptr;
};

// All memory of a CudaDecoder but its weights, allocated once. Shapes in brackets.
struct CudaDecoder::Buffers {
  explicit Buffers(cuda::Stream s) : stream(std::move(s)) {}

  // Lays out and allocates everything.
  absl::Status Allocate(const Qwen3Config& config, const CudaDecoderOptions& options);
  // Copies what never changes: the rope table, the identity of slots. Clears the KV cache and
  // activations: rows of padding are computed with, and must hold numbers.
  // `experts_here` are those on the device, if others are elsewhere; else empty.
  absl::Status Fill(const Qwen3Config& config, const std::vector<int>& experts_here);
  // Where rows of a step of `num_rows` tokens begin in `others`, in bytes.
  size_t OtherRowsOffset(int64_t num_rows) const {
    return (num_rows * num_experts_per_tok * sizeof(int32_t) + 255) / 256 * 256;
  }
  BFloat16* OtherRows(int64_t num_rows) const {
    return reinterpret_cast<BFloat16*>(reinterpret_cast<char*>(others) + OtherRowsOffset(num_rows));
  }
  // Internal if the gate of the last step met a logit that is not finite; after bad_token was
  // copied to the host.
  absl::Status CheckGate() const;

  cuda::Stream stream;
  int64_t max_rows = 0;        // T: tokens of a step
  int64_t max_logit_rows = 0;  // L: rows of logits computed at a time
  int64_t max_segments = 0;    // of attention's workspace
  int num_experts_per_tok = 0;

  // Copied to the device each step, in this order; tables as far as they are used.
  StepArray<uint32_t> ids;                             // [T]
  StepArray<int32_t> positions;                        // [T]
  StepArray<int64_t> slot_mapping;                     // [T]
  StepArray<int64_t> logit_rows;                       // [T]
  StepArray<cuda::DeviceAttentionSequence> sequences;  // [T]
  StepArray<int32_t> num_valid;                        // [1]
  StepArray<int32_t> tables;                           // block tables, one after another
  size_t step_bytes_before_tables = 0;
  int64_t tables_used = 0;
  cuda::PinnedMemory step_host;
  cuda::DeviceMemory step_device;

  BFloat16* kv_cache = nullptr;  // [num_hidden_layers][k, v][kv_values_per_array]
  int64_t kv_values_per_array = 0;
  float* rope_cos = nullptr;  // [MaxContext, head_dim / 2]
  float* rope_sin = nullptr;
  float* residual = nullptr;                // [T, hidden_size]
  BFloat16* hidden_states = nullptr;        // [T, hidden_size]
  float* qkv = nullptr;                     // [T, (heads + 2 * kv_heads) * head_dim]
  BFloat16* q = nullptr;                    // [T, heads * head_dim]
  BFloat16* attention = nullptr;            // [T, heads * head_dim]
  float* attention_workspace = nullptr;     // [max_segments, kv_heads, 16, head_dim + 2]
  float* gate_up = nullptr;                 // [T, 2 * intermediate_size]; with dense layers
  BFloat16* intermediate = nullptr;         // [T, intermediate_size]; with dense layers
  float* gate_logits = nullptr;             // [T, num_experts]
  int32_t* topk_ids = nullptr;              // [T, num_experts_per_tok]
  float* topk_weights = nullptr;            // [T, num_experts_per_tok]
  int32_t* expert_offsets = nullptr;        // [num_experts + 1]
  int32_t* pair_rows = nullptr;             // [T * num_experts_per_tok]
  int32_t* pair_of_slot = nullptr;          // [T * num_experts_per_tok]
  int32_t* place_of_expert = nullptr;       // [num_experts]; see SortPairsArgs
  BFloat16* expert_intermediate = nullptr;  // [T * num_experts_per_tok, moe_intermediate_size]
  BFloat16* expert_rows = nullptr;          // [T * num_experts_per_tok, hidden_size]
  // Of experts elsewhere: the place of each slot's row, or -1, then the rows; see OtherRowsOffset.
  int32_t* others = nullptr;
  int32_t* bad_token = nullptr;     // [1]
  BFloat16* last_hidden = nullptr;  // [T, hidden_size]
  float* logits = nullptr;          // [L, vocab_size]

  float* host_logits = nullptr;  // pinned, as the device's
  int32_t* host_bad_token = nullptr;
  BFloat16* host_hidden_states = nullptr;
  int32_t* host_topk_ids = nullptr;
  int32_t* host_others = nullptr;
  std::optional<cuda::Event>
      sent;  // host_hidden_states, host_topk_ids and host_bad_token are there

  CudaSampler sampler;

 private:
  std::vector<cuda::DeviceMemory> device_memory_;
  std::vector<cuda::PinnedMemory> host_memory_;
};

}  // namespace conclave
