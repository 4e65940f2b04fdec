#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/cuda/norm_rope.h"
#include "kernels/cuda/runtime.h"

namespace conclave::cuda {

// AttentionSequence for the device.
struct DeviceAttentionSequence {
  int32_t first_row = 0;
  int32_t num_tokens = 0;  // 0: padding of a graph's bucket
  int32_t first_position = 0;
  int32_t table_begin = 0;  // index into block_tables of its first entry
  // AttentionDecode's: index into the workspace of its first segment; it has one for each
  // kAttentionSegment positions, the last in part.
  int32_t segment_begin = 0;
};

// Everything a pointer leads to lies on the device; block ids and rows are in range: the caller's
// promise.
struct DeviceAttentionArgs {
  const BFloat16* q = nullptr;  // [num_rows, num_attention_heads * head_dim]
  DeviceKvCacheLayer kv_cache =
      {};  // holds the new tokens already; head_dim 32, 64 or 128, blocks of 16
  const DeviceAttentionSequence* sequences = nullptr;  // [num_sequences]
  const int32_t* block_tables = nullptr;
  int num_sequences = 0;
  // The most of any sequence; they size the launch.
  int max_tokens = 0;
  int max_context = 0;         // of first_position + num_tokens
  BFloat16* output = nullptr;  // out, as q
  int num_attention_heads = 0;
  float scale = 0;             // 1 / sqrt(head_dim)
  float* workspace = nullptr;  // AttentionDecode's: DecodeWorkspaceFloats
};

// Query rows of one sequence and KV head that AttentionDecode takes: num_tokens * (query heads a KV
// head) must not be more.
inline constexpr int kDecodeRows = 16;
// Positions over which a softmax is summed apart; the parts are merged in order.
inline constexpr int kAttentionSegment = 256;

inline int NumAttentionSegments(int context) {
  return (context + kAttentionSegment - 1) / kAttentionSegment;
}

// Of AttentionDecode's workspace; num_segments of all its sequences together.
inline size_t DecodeWorkspaceFloats(int64_t num_segments, int num_key_value_heads, int head_dim) {
  return static_cast<size_t>(num_segments) * num_key_value_heads * kDecodeRows * (head_dim + 2);
}

// As conclave::Attention, for sequences with few new tokens and for those with many. One thread
// block takes all query heads of a KV head, so that keys and values are read once; decode gives
// each segment of 256 positions one thread block, prefill each 64 query rows.
//
// Both give a row the same bits, by construction: a row's scores, its maximum after each 64
// positions, the order of its sums and the merging of segments depend on its position alone, not on
// the kernel, the other rows, the batch or the chunk it came in.
// FLOPs: 4 * head_dim per (query head, visible position). Bytes, decode: 4 * head_dim per (KV head,
// position). Errors: InvalidArgument (null pointer, size out of range), Internal (launch failed).
absl::Status AttentionDecode(const DeviceAttentionArgs& args, const Stream& stream);
absl::Status AttentionPrefill(const DeviceAttentionArgs& args, const Stream& stream);

}  // namespace conclave::cuda
