#include "worker/pair_order.h"

#include "common/check.h"

namespace conclave {

void SortPairs(const ExpertBatch& batch, int num_experts_per_tok, int num_experts,
               PairOrder* order) {
  const size_t num_pairs = static_cast<size_t>(batch.num_rows) * num_experts_per_tok;
  order->rows.resize(num_pairs);
  order->experts.resize(num_pairs);
  order->slots.resize(num_pairs);
  // Counting sort: next[e] is where the next pair of expert e goes.
  std::vector<uint32_t> next(num_experts + 1, 0);
  for (size_t slot = 0; slot < num_pairs; ++slot) {
    const int32_t expert = batch.topk_ids[slot];
    CHECK(expert >= 0 && expert < num_experts) << "topk_ids holds " << expert;
    ++next[expert + 1];
  }
  for (int expert = 0; expert < num_experts; ++expert) next[expert + 1] += next[expert];
  for (size_t slot = 0; slot < num_pairs; ++slot) {
    const int32_t expert = batch.topk_ids[slot];
    const uint32_t pair = next[expert]++;
    order->rows[pair] = static_cast<uint32_t>(slot / num_experts_per_tok);
    order->experts[pair] = static_cast<uint32_t>(expert);
    order->slots[pair] = static_cast<uint32_t>(slot);
  }
}

}  // namespace conclave
