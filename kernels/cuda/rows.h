#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/cuda/runtime.h"
#include "kernels/rms_norm.h"
#include "kernels/swiglu.h"

// Ops that treat each row on its own. All arrays are device memory, row-major; every call is
// asynchronous on `stream`, allocates nothing and waits for nothing. A row's result depends on that
// row alone, by construction: one warp or thread block computes it in one order.
namespace conclave::cuda {

struct EmbeddingArgs {
  const uint32_t* ids = nullptr;    // [num_tokens], below vocab_size: the caller's promise
  const BFloat16* table = nullptr;  // [vocab_size, hidden_size]
  float* residual = nullptr;        // out [num_tokens, hidden_size]
  int64_t num_tokens = 0;
  int64_t hidden_size = 0;
};
// Bytes: 6 * hidden_size a token. Errors: InvalidArgument (null pointer, size out of range),
// Internal (launch failed), as for every op here.
absl::Status Embedding(const EmbeddingArgs& args, const Stream& stream);

// Contract of conclave::RmsNorm. `row_ids`, if not null, names the row of args.input that output
// row r is of: [num_rows].
absl::Status RmsNorm(const RmsNormArgs& args, const int64_t* row_ids, const Stream& stream);

// Contract of conclave::SwiGlu.
absl::Status SwiGlu(const SwiGluArgs& args, const Stream& stream);

struct CombineArgs {
  const BFloat16* expert_rows = nullptr;  // [num_pairs, hidden_size], sorted by expert
  // [num_tokens * num_experts_per_tok]: the pair of the token's k-th expert; negative: this row is
  // padding of a graph's bucket and is left as it is, or the pair is among others.
  const int32_t* pair_of_slot = nullptr;
  // Where pair_of_slot is negative, if not null: the pair's row in other_rows, for every such slot.
  const int32_t* other_of_slot = nullptr;
  const BFloat16* other_rows = nullptr;  // [num_others, hidden_size]
  const float* topk_weights = nullptr;   // [num_tokens, num_experts_per_tok]
  float* residual = nullptr;             // in and out [num_tokens, hidden_size]
  int64_t num_tokens = 0;
  int num_experts_per_tok = 0;
  int64_t hidden_size = 0;
};
// As conclave::MoeCombine: summed in FP32 in the gate's order, then added.
absl::Status Combine(const CombineArgs& args, const Stream& stream);

}  // namespace conclave::cuda
