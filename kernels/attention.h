#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/bfloat16.h"
#include "kernels/device.h"
#include "kernels/norm_rope.h"

namespace conclave {

// The new tokens of one sequence in a step: query row first_row + i sits at absolute position
// first_position + i and sees positions 0 .. first_position + i.
struct AttentionSequence {
  int64_t first_row = 0;
  int64_t num_tokens = 0;
  int64_t first_position = 0;
  const int32_t* block_table = nullptr;  // [ceil((first_position + num_tokens) / block_tokens)]
};

struct AttentionArgs {
  const BFloat16* q = nullptr;  // [num_rows, num_attention_heads * head_dim]
  KvCacheLayer kv_cache = {};   // holds the new tokens already
  absl::Span<const AttentionSequence> sequences = {};
  BFloat16* output = nullptr;  // out [num_rows, num_attention_heads * head_dim]
  int num_attention_heads = 0;
  float scale = 0;  // 1 / sqrt(head_dim)
};

// Query heads that share one KV head: 16 in Qwen3-235B-A22B, the widest of the family.
inline constexpr int kMaxQueryGroup = 32;

// Causal grouped-query attention over the paged cache, online softmax in FP32. Keys are walked in
// chunks of 64 and summed up in segments of 1024 absolute positions, merged in order, so whole,
// chunked and cached prefill agree to the bit, as one thread and many do. Query head h reads KV
// head h / (num_attention_heads / num_key_value_heads). FLOPs: 4 * head_dim per (query head,
// visible position). Errors: InvalidArgument (null pointer; a size, block id or head_dim out of
// range; block_tokens other than limits::kKvBlockTokens).
absl::Status Attention(const AttentionArgs& args, const Device& device);
absl::Status AttentionReference(const AttentionArgs& args);

}  // namespace conclave
