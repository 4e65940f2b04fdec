#include "expert_shard/merged_pairs.h"

#include <algorithm>
#include <limits>

namespace conclave {

void MergePairs(absl::Span<const v1::ExpertDispatch* const> dispatches, MergedPairs* merged) {
  merged->pair_rows.clear();
  merged->pair_experts.clear();
  merged->runs.assign(dispatches.size(), {});
  std::vector<int> next(dispatches.size(), 0);  // pair of each dispatch
  while (true) {
    constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
    uint32_t expert = kNone;
    for (size_t d = 0; d < dispatches.size(); ++d) {
      if (next[d] < dispatches[d]->pair_experts_size()) {
        expert = std::min(expert, dispatches[d]->pair_experts(next[d]));
      }
    }
    if (expert == kNone) return;
    uint32_t first_row = 0;
    for (size_t d = 0; d < dispatches.size(); ++d) {
      const v1::ExpertDispatch& dispatch = *dispatches[d];
      const auto first_pair = static_cast<int64_t>(merged->pair_rows.size());
      for (; next[d] < dispatch.pair_experts_size() && dispatch.pair_experts(next[d]) == expert;
           ++next[d]) {
        merged->pair_rows.push_back(first_row + dispatch.pair_rows(next[d]));
        merged->pair_experts.push_back(expert);
      }
      first_row += dispatch.num_rows();
      const int64_t num_pairs = static_cast<int64_t>(merged->pair_rows.size()) - first_pair;
      if (num_pairs == 0) continue;
      std::vector<MergedPairs::Run>& runs = merged->runs[d];
      if (!runs.empty() && runs.back().first_pair + runs.back().num_pairs == first_pair) {
        runs.back().num_pairs += num_pairs;
      } else {
        runs.push_back({first_pair, num_pairs});
      }
    }
  }
}

}  // namespace conclave
