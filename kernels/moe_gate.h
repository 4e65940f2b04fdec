#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device.h"

namespace conclave {

struct MoeGateArgs {                   // arrays are row-major
  const float* gate_logits = nullptr;  // [num_tokens, num_experts]
  int32_t* topk_ids = nullptr;         // out [num_tokens, num_experts_per_tok], global expert ids
  float* topk_weights = nullptr;       // out, same shape; rows sum to 1 if norm_topk_prob
  int64_t num_tokens = 0;
  int num_experts = 0;
  int num_experts_per_tok = 0;
  bool norm_topk_prob = true;
};

// Softmax over experts, then top-k in falling order; equal logits go to the lower id.
// Errors: InvalidArgument (null pointer, size out of range), Internal (a logit is not finite).
// Source: Qwen3MoeSparseMoeBlock.forward in Hugging Face transformers.
absl::Status MoeGate(const MoeGateArgs& args, const Device& device);
absl::Status MoeGateReference(const MoeGateArgs& args);

}  // namespace conclave
