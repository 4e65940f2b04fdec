#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/cuda/runtime.h"
#include "kernels/norm_rope.h"

namespace conclave::cuda {

// One decoder layer's KV cache on the device. Both arrays are BF16, row-major
// [num_blocks, num_key_value_heads, block_tokens, head_dim]; the CPU's lie otherwise.
struct DeviceKvCacheLayer {
  BFloat16* k = nullptr;
  BFloat16* v = nullptr;
  int num_key_value_heads = 0;
  int block_tokens = 0;
  int head_dim = 0;
};

// NormRopeArgs in device memory.
struct DeviceNormRopeArgs {
  // [num_tokens, (num_attention_heads + 2 * num_key_value_heads) * head_dim]: q, then k, then v.
  const float* qkv = nullptr;
  const float* q_norm = nullptr;    // [head_dim]
  const float* k_norm = nullptr;    // [head_dim]
  const float* rope_cos = nullptr;  // RopeTable's [max_positions, head_dim / 2]
  const float* rope_sin = nullptr;
  const int32_t* positions = nullptr;     // [num_tokens]
  const int64_t* slot_mapping = nullptr;  // [num_tokens]; negative: padding, no key or value
  BFloat16* q = nullptr;                  // out [num_tokens, num_attention_heads * head_dim]
  DeviceKvCacheLayer kv_cache = {};       // out: the tokens' slots
  int64_t num_tokens = 0;
  int num_attention_heads = 0;
  float rms_norm_eps = 1e-6f;
};

// As conclave::NormRope. One warp a head: a head's result depends on that head alone, by
// construction. Positions and slots are in range: the caller's promise, as they lie on the device.
// Bytes: 4 in and 2 out a value. Errors: InvalidArgument (null pointer, size out of range),
// Internal (launch failed).
absl::Status NormRope(const DeviceNormRopeArgs& args, const Stream& stream);

}  // namespace conclave::cuda
