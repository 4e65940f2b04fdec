#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace conclave {

// The experts of shard `shard_idx` of `num_shards`: contiguous ranges whose sizes differ by at
// most one, longer ones first. 128 experts on 3 shards: 0..42, 43..85, 86..127.
// Requires num_experts >= 0, num_shards >= 1 and 0 <= shard_idx < num_shards.
std::vector<int> ExpertsOfShard(int num_experts, int num_shards, int shard_idx);

// Reads "0-31,40": ascending ids. InvalidArgument: empty, not a number, a range that runs
// backwards, an id twice, or one not below num_experts.
absl::StatusOr<std::vector<int>> ParseExpertList(absl::string_view text, int num_experts);

// The shortest text that ParseExpertList reads back as `experts` (ascending, distinct).
std::string FormatExpertList(absl::Span<const int> experts);

// Which experts a process is to host, as its flags say it: a list, or a place among num_shards.
struct ExpertChoice {
  std::string list = {};  // as ParseExpertList reads it
  int shard_index = -1;   // with num_shards, instead of a list: as ExpertsOfShard divides them
  int num_shards = 0;

  bool ByIndex() const { return shard_index >= 0 || num_shards != 0; }
  bool IsGiven() const { return ByIndex() || !list.empty(); }
};
// InvalidArgument for all that is wrong with a choice whatever the model: two ways at once, a list
// that is none, an index that is no shard's. `list_flag` is the name of the list's flag.
std::vector<absl::Status> CheckExpertChoice(const ExpertChoice& choice,
                                            absl::string_view list_flag);
// InvalidArgument: what ParseExpertList refuses, or a number out of range. Requires a list or an
// index, and not both.
absl::StatusOr<std::vector<int>> ChosenExperts(const ExpertChoice& choice, int num_experts);

// What one shard says it owns; the same experts in every sparse layer.
struct ShardExperts {
  int shard_idx = 0;  // the caller's own number for the shard
  std::vector<int> experts;
};

// Which shards can run an expert. Immutable: build a new one when a Describe says otherwise.
class ExpertPlacement {
 public:
  ExpertPlacement() = default;  // no experts

  // InvalidArgument: an expert not below num_experts, or a shard that names one twice or appears
  // twice. An expert that nobody owns is no error here; see MissingExperts.
  static absl::StatusOr<ExpertPlacement> Make(int num_experts,
                                              absl::Span<const ShardExperts> shards);

  int num_experts() const { return static_cast<int>(replicas_.size()); }

  // shard_idx of every shard that owns the expert, in the order given to Make.
  absl::Span<const int> ReplicasOf(int expert) const { return replicas_[expert]; }

  // Ascending; empty if every expert has an owner.
  std::vector<int> MissingExperts() const;

 private:
  std::vector<std::vector<int>> replicas_;  // [num_experts]
};

}  // namespace conclave
