#include "model/expert_placement.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/errors.h"
#include "common/id_list.h"
#include "common/limits.h"

namespace conclave {

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
  return ParseIdList("expert", text, num_experts);
}

std::string FormatExpertList(absl::Span<const int> experts) { return FormatIdList(experts); }

std::vector<absl::Status> CheckExpertChoice(const ExpertChoice& choice,
                                            absl::string_view list_flag) {
  std::vector<absl::Status> wrong;
  if (choice.ByIndex() && !choice.list.empty()) {
    wrong.push_back(absl::InvalidArgumentError(
        absl::StrCat("want either ", list_flag, " or both --shard_index and --num_shards")));
  }
  if (!choice.list.empty()) {
    const absl::Status list = ParseExpertList(choice.list, limits::kMaxExperts).status();
    if (!list.ok()) {
      wrong.push_back(
          absl::InvalidArgumentError(absl::StrCat(list_flag, ": ", std::string(list.message()))));
    }
  }
  if (choice.ByIndex() && choice.num_shards < 1) {
    wrong.push_back(errors::OutOfRange("--num_shards", choice.num_shards, "1 or more"));
  } else if (choice.ByIndex() &&
             (choice.shard_index < 0 || choice.shard_index >= choice.num_shards)) {
    wrong.push_back(errors::OutOfRange("--shard_index", choice.shard_index,
                                       absl::StrCat("0..", choice.num_shards - 1)));
  }
  return wrong;
}

absl::StatusOr<std::vector<int>> ChosenExperts(const ExpertChoice& choice, int num_experts) {
  if (!choice.ByIndex()) return ParseExpertList(choice.list, num_experts);
  if (choice.num_shards < 1 || choice.num_shards > num_experts) {
    return errors::OutOfRange("--num_shards", choice.num_shards, absl::StrCat("1..", num_experts));
  }
  if (choice.shard_index < 0 || choice.shard_index >= choice.num_shards) {
    return errors::OutOfRange("--shard_index", choice.shard_index,
                              absl::StrCat("0..", choice.num_shards - 1));
  }
  return ExpertsOfShard(num_experts, choice.num_shards, choice.shard_index);
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
