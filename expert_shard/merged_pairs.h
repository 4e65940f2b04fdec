#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "proto/conclave/v1/expert_shard.pb.h"

namespace conclave {

// The pairs of several dispatches of one layer as one list, still sorted by expert, so that each
// expert appears once: by expert, then by dispatch, then as the dispatch had them.
struct MergedPairs {
  // Consecutive pairs of the list that are consecutive in one dispatch too.
  struct Run {
    int64_t first_pair = 0;  // in the merged list
    int64_t num_pairs = 0;
  };

  std::vector<uint32_t> pair_rows;     // a dispatch's rows follow those of the ones before it
  std::vector<uint32_t> pair_experts;  // never falls
  std::vector<std::vector<Run>> runs;  // of each dispatch, in the order of its pairs
};

// Fills `merged`, whose memory is reused. The dispatches passed DispatchRules.
void MergePairs(absl::Span<const v1::ExpertDispatch* const> dispatches, MergedPairs* merged);

}  // namespace conclave
