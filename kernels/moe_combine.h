#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/device.h"

namespace conclave {

struct MoeCombineArgs {
  // [num_tokens * num_experts_per_tok] pointers, in the gate's order, to BF16 [hidden_size] rows:
  // they lie wherever the shard's answer was received.
  const BFloat16* const* expert_rows = nullptr;
  const float* topk_weights = nullptr;  // [num_tokens, num_experts_per_tok]
  float* residual = nullptr;            // in and out [num_tokens, hidden_size]
  int64_t num_tokens = 0;
  int num_experts_per_tok = 0;
  int64_t hidden_size = 0;
};

// residual += sum over k of topk_weights[t, k] * expert_rows[t, k], summed in FP32 in the gate's
// order first, then added: the same for any placement of the experts.
absl::Status MoeCombine(const MoeCombineArgs& args, const Device& device);
absl::Status MoeCombineReference(const MoeCombineArgs& args);

}  // namespace conclave
