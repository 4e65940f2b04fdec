#include "model/expert_placement.h"

#include <algorithm>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/check.h"
#include "common/errors.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

absl::StatusOr<int> ParseExpertId(absl::string_view text, int num_experts) {
  int id = -1;
  if (!absl::SimpleAtoi(text, &id) || id < 0 || id >= num_experts) {
    return errors::OutOfRange("expert id", absl::StrCat("\"", text, "\""),
                              absl::StrCat("0..", num_experts - 1));
  }
  return id;
}

}  // namespace

std::vector<int> ExpertsOfShard(int num_experts, int num_shards, int shard_idx) {
  CHECK_GE(num_experts, 0);
  CHECK(num_shards >= 1 && shard_idx >= 0 && shard_idx < num_shards)
      << "shard_idx is " << shard_idx << ", want 0.." << num_shards - 1;
  const int size = num_experts / num_shards, longer = num_experts % num_shards;
  const int begin = shard_idx * size + std::min(shard_idx, longer);
  std::vector<int> experts(size + (shard_idx < longer ? 1 : 0));
  for (size_t i = 0; i < experts.size(); ++i) experts[i] = begin + static_cast<int>(i);
  return experts;
}

absl::StatusOr<std::vector<int>> ParseExpertList(absl::string_view text, int num_experts) {
  std::set<int> experts;
  for (const absl::string_view item : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> ends = absl::StrSplit(item, absl::MaxSplits('-', 1));
    ASSIGN_OR_RETURN(const int first, ParseExpertId(ends.front(), num_experts));
    ASSIGN_OR_RETURN(const int last, ParseExpertId(ends.back(), num_experts));
    if (last < first) {
      return errors::OutOfRange("expert range", absl::StrCat("\"", item, "\""), "first <= last");
    }
    for (int id = first; id <= last; ++id) {
      if (experts.insert(id).second) continue;
      return errors::OutOfRange("expert list", absl::StrCat("\"", text, "\""),
                                absl::StrCat("each id once, ", id, " is there twice"));
    }
  }
  return std::vector<int>(experts.begin(), experts.end());
}

std::string FormatExpertList(absl::Span<const int> experts) {
  std::vector<std::string> ranges;
  for (size_t begin = 0, end = 0; begin < experts.size(); begin = end) {
    end = begin + 1;
    while (end < experts.size() && experts[end] == experts[end - 1] + 1) ++end;
    ranges.push_back(end - begin == 1 ? absl::StrCat(experts[begin])
                                      : absl::StrCat(experts[begin], "-", experts[end - 1]));
  }
  return absl::StrJoin(ranges, ",");
}

absl::StatusOr<ExpertPlacement> ExpertPlacement::Make(int num_experts,
                                                      absl::Span<const ShardExperts> shards) {
  CHECK_GE(num_experts, 0);
  ExpertPlacement placement;
  placement.replicas_.resize(num_experts);
  std::set<int> shards_seen;
  for (const ShardExperts& shard : shards) {
    if (!shards_seen.insert(shard.shard_idx).second) {
      return errors::OutOfRange("shard_idx", shard.shard_idx, "each shard once");
    }
    for (const int expert : shard.experts) {
      if (expert < 0 || expert >= num_experts) {
        return errors::OutOfRange(absl::StrCat("expert of shard ", shard.shard_idx), expert,
                                  absl::StrCat("0..", num_experts - 1));
      }
      std::vector<int>& replicas = placement.replicas_[expert];
      if (!replicas.empty() && replicas.back() == shard.shard_idx) {
        return errors::OutOfRange(absl::StrCat("expert of shard ", shard.shard_idx), expert,
                                  "each expert once");
      }
      replicas.push_back(shard.shard_idx);
    }
  }
  return placement;
}

std::vector<int> ExpertPlacement::MissingExperts() const {
  std::vector<int> missing;
  for (int expert = 0; expert < num_experts(); ++expert) {
    if (replicas_[expert].empty()) missing.push_back(expert);
  }
  return missing;
}

}  // namespace conclave
