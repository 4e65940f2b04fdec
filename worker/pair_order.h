#pragma once

#include <cstdint>
#include <vector>

#include "worker/expert_exchange.h"

namespace conclave {

// The (row, expert) pairs of a batch sorted by expert, then by row: what experts are run in.
struct PairOrder {
  std::vector<uint32_t> rows;     // [num_pairs]
  std::vector<uint32_t> experts;  // [num_pairs], never falls
  std::vector<uint32_t> slots;    // [num_pairs]: row * num_experts_per_tok + rank in the gate
};

// Fills `order`, whose memory is reused. Every topk id is in 0..num_experts-1.
void SortPairs(const ExpertBatch& batch, int num_experts_per_tok, int num_experts,
               PairOrder* order);

}  // namespace conclave
