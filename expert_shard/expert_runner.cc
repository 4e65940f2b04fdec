#include "expert_shard/expert_runner.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave {

absl::Status ExpertRunner::CheckExpertIds(const Qwen3Config& config,
                                          absl::Span<const int> expert_ids) {
  if (config.num_experts == 0) {
    return absl::InvalidArgumentError("num_experts is 0: a dense model has no experts to run");
  }
  for (size_t i = 0; i < expert_ids.size(); ++i) {
    if (expert_ids[i] < 0 || expert_ids[i] >= config.num_experts) {
      return errors::OutOfRange("expert id", expert_ids[i],
                                absl::StrCat("0..", config.num_experts - 1));
    }
    if (i > 0 && expert_ids[i] <= expert_ids[i - 1]) {
      return errors::OutOfRange(absl::StrCat("expert id after ", expert_ids[i - 1]), expert_ids[i],
                                "rising ids");
    }
  }
  return absl::OkStatus();
}

ExpertRunner::ExpertRunner(const Qwen3Config& config, absl::Span<const int> expert_ids,
                           WeightDtype dtype)
    : hidden_size_(config.hidden_size),
      dtype_(dtype),
      expert_ids_(expert_ids.begin(), expert_ids.end()),
      slot_of_expert_(config.num_experts, -1),
      sparse_of_layer_(config.num_hidden_layers, -1) {
  for (size_t slot = 0; slot < expert_ids_.size(); ++slot) {
    slot_of_expert_[expert_ids_[slot]] = static_cast<int>(slot);
  }
  int sparse = 0;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.IsSparseLayer(layer)) sparse_of_layer_[layer] = sparse++;
  }
}

bool ExpertRunner::Holds(int layer, int expert) const {
  if (layer < 0 || layer >= static_cast<int>(sparse_of_layer_.size())) return false;
  if (expert < 0 || expert >= static_cast<int>(slot_of_expert_.size())) return false;
  return sparse_of_layer_[layer] >= 0 && slot_of_expert_[expert] >= 0;
}

absl::Status ExpertRunner::Run(int layer, const BFloat16* hidden_states, int64_t num_rows,
                               absl::Span<const uint32_t> pair_rows,
                               absl::Span<const uint32_t> pair_experts, BFloat16* output) {
  if (pair_rows.size() != pair_experts.size()) {
    return errors::OutOfRange("length of pair_experts", pair_experts.size(),
                              absl::StrCat(pair_rows.size(), ", that of pair_rows"));
  }
  for (size_t begin = 0; begin < pair_rows.size(); begin += limits::kMaxExpertBatchPairs) {
    const size_t count = std::min<size_t>(limits::kMaxExpertBatchPairs, pair_rows.size() - begin);
    RETURN_IF_ERROR(RunSlice(layer, hidden_states, num_rows, pair_rows.subspan(begin, count),
                             pair_experts.subspan(begin, count),
                             output + begin * static_cast<size_t>(hidden_size_)));
  }
  return absl::OkStatus();
}

absl::Status ExpertRunner::RunSlice(int layer, const BFloat16* hidden_states, int64_t num_rows,
                                    absl::Span<const uint32_t> pair_rows,
                                    absl::Span<const uint32_t> pair_experts, BFloat16* output) {
  groups_.clear();
  for (size_t pair = 0; pair < pair_rows.size(); ++pair) {
    const uint32_t expert = pair_experts[pair];
    if (pair_rows[pair] >= num_rows) {
      return errors::OutOfRange("pair_rows", pair_rows[pair], absl::StrCat("below ", num_rows));
    }
    if (pair > 0 && expert == pair_experts[pair - 1]) {
      ++groups_.back().num_pairs;
      continue;
    }
    if (pair > 0 && expert < pair_experts[pair - 1]) {
      return errors::OutOfRange(
          "pair_experts", expert,
          absl::StrCat("at least ", pair_experts[pair - 1], ", the one before"));
    }
    if (!Holds(layer, static_cast<int>(expert))) {
      return absl::FailedPreconditionError(
          absl::StrCat("expert ", expert, " of layer ", layer, " is not held here"));
    }
    groups_.push_back({slot_of_expert_[expert], static_cast<int64_t>(pair), 1});
  }
  return RunGroups({layer, hidden_states, num_rows, pair_rows, groups_, output});
}

}  // namespace conclave
