#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/device.h"
#include "kernels/rope_table.h"

namespace conclave {

// Widest head served; Qwen3 has 128. Bounds the attention kernels' stack.
inline constexpr int kMaxHeadDim = 256;

// One decoder layer's KV cache: blocks of block_tokens tokens, BF16, in the layouts that attention
// streams. A key lies across its block, so that one 64-byte line holds a pair of the head for 16
// tokens; two neighbouring tokens' values are interleaved:
//   k [num_blocks, num_key_value_heads, head_dim / 2, block_tokens, 2]
//   v [num_blocks, num_key_value_heads, block_tokens / 2, head_dim, 2]
struct KvCacheLayer {
  BFloat16* k = nullptr;
  BFloat16* v = nullptr;
  int64_t num_blocks = 0;
  int num_key_value_heads = 0;
  int block_tokens = 0;  // even
  int head_dim = 0;      // even, at most kMaxHeadDim

  // Index of value i of a head's key or value at slot block * block_tokens + offset.
  int64_t KeyIndex(int64_t slot, int kv_head, int i) const {
    return HeadIndex(slot, kv_head) + int64_t{i / 2} * 2 * block_tokens + slot % block_tokens * 2 +
           i % 2;
  }
  int64_t ValueIndex(int64_t slot, int kv_head, int i) const {
    const int64_t offset = slot % block_tokens;
    return HeadIndex(slot, kv_head) + (offset / 2 * head_dim + i) * 2 + offset % 2;
  }
  int64_t HeadIndex(int64_t slot, int kv_head) const {
    return (slot / block_tokens * num_key_value_heads + kv_head) * block_tokens * head_dim;
  }
};

struct NormRopeArgs {
  // [num_tokens, (num_attention_heads + 2 * num_key_value_heads) * head_dim]: q, then k, then v.
  const float* qkv = nullptr;
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
  const RopeTable* rope = nullptr;
  const int32_t* positions = nullptr;     // [num_tokens], absolute, below rope->max_positions
  const int64_t* slot_mapping = nullptr;  // [num_tokens]: block * block_tokens + offset
  BFloat16* q = nullptr;                  // out [num_tokens, num_attention_heads * head_dim]
  KvCacheLayer kv_cache = {};             // out: the tokens' slots
  int64_t num_tokens = 0;
  int num_attention_heads = 0;
  float rms_norm_eps = 1e-6f;
};

// Per head: RMSNorm of q and k, rotation by halves (i with i + head_dim / 2), one rounding to
// BF16; v is rounded as it is. Errors: InvalidArgument (null pointer; a size, position or slot out
// of range).
// Source: Qwen3Attention.forward and apply_rotary_pos_emb in transformers.
absl::Status NormRope(const NormRopeArgs& args, const Device& device);
absl::Status NormRopeReference(const NormRopeArgs& args);

}  // namespace conclave
