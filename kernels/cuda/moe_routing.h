#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/runtime.h"
#include "kernels/moe_gate.h"

// From gate logits to (row, expert) pairs in the order in which experts are run. Device memory;
// asynchronous on `stream`; nothing is read back.
namespace conclave::cuda {

struct DeviceMoeGateArgs {
  MoeGateArgs args = {};
  // Rows from *num_valid_rows on are padding of a graph's bucket: their ids become -1. Null: none.
  const int32_t* num_valid_rows = nullptr;
  // In and out: raised to 1 + the highest token with a logit that is not finite; see the host's
  // Internal error. Clear it before.
  int32_t* bad_token = nullptr;
};

// As conclave::MoeGate. One warp a token, so that a token's result depends on its logits alone, by
// construction. Errors: InvalidArgument (null pointer, size out of range), Internal (launch
// failed).
absl::Status MoeGate(const DeviceMoeGateArgs& args, const Stream& stream);

struct SortPairsArgs {
  const int32_t* topk_ids = nullptr;  // [num_tokens, num_experts_per_tok]; -1: no pair
  // By id: the expert's place among the num_experts of this device, -1: it is elsewhere and its
  // pairs are none here. Null: ids are places.
  const int32_t* place_of_expert = nullptr;
  // Sorted by expert, then by token, as worker/pair_order.h does:
  int32_t* expert_offsets = nullptr;  // out [num_experts + 1]: first pair of each expert
  int32_t* pair_rows = nullptr;       // out [num_pairs]: the token
  int32_t* pair_of_slot = nullptr;    // out [num_tokens * num_experts_per_tok]; -1 where no pair is
  int64_t num_tokens = 0;
  int num_experts = 0;
  int num_experts_per_tok = 0;
};

// One thread block an expert reads all of topk_ids: integers only, one result for every device.
absl::Status SortPairs(const SortPairsArgs& args, const Stream& stream);

}  // namespace conclave::cuda
