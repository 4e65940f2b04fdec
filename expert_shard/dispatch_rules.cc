#include "expert_shard/dispatch_rules.h"

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"

namespace conclave {

DispatchRules::DispatchRules(const Qwen3Config& config, absl::Span<const int> expert_ids,
                             uint64_t placement_epoch)
    : hidden_size_(config.hidden_size),
      num_experts_per_tok_(config.num_experts_per_tok),
      placement_epoch_(placement_epoch),
      sparse_(config.num_hidden_layers),
      owned_(config.num_experts) {
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    sparse_[layer] = config.IsSparseLayer(layer);
  }
  for (const int expert : expert_ids) owned_[expert] = true;
}

absl::Status DispatchRules::Check(const v1::ExpertDispatch& header, size_t tensor_bytes) const {
  // First: a sender that assumed another placement may well name experts that are elsewhere now.
  if (header.placement_epoch() != placement_epoch_) {
    return errors::StalePlacement(header.placement_epoch(), placement_epoch_);
  }
  RETURN_IF_ERROR(CheckShape(header, tensor_bytes));
  return CheckPairs(header);
}

absl::Status DispatchRules::CheckShape(const v1::ExpertDispatch& header,
                                       size_t tensor_bytes) const {
  if (header.layer() >= sparse_.size()) {
    return errors::OutOfRange("layer", header.layer(), absl::StrCat("below ", sparse_.size()));
  }
  if (!sparse_[header.layer()]) {
    return errors::OutOfRange("layer", header.layer(), "a layer with experts");
  }
  if (header.num_rows() == 0) return errors::OutOfRange("num_rows", 0, "at least 1");
  // Both factors are below 2^32: no overflow.
  const uint64_t wanted = static_cast<uint64_t>(header.num_rows()) * row_bytes();
  if (tensor_bytes != wanted) {
    return errors::OutOfRange("length of hidden_states", tensor_bytes,
                              absl::StrCat(wanted, " bytes for ", header.num_rows(), " rows"));
  }
  return absl::OkStatus();
}

absl::Status DispatchRules::CheckPairs(const v1::ExpertDispatch& header) const {
  const int num_pairs = header.pair_rows_size();
  if (header.pair_experts_size() != num_pairs) {
    return errors::OutOfRange("length of pair_experts", header.pair_experts_size(),
                              absl::StrCat(num_pairs, ", that of pair_rows"));
  }
  const uint64_t max_pairs = static_cast<uint64_t>(header.num_rows()) * num_experts_per_tok_;
  if (num_pairs == 0 || static_cast<uint64_t>(num_pairs) > max_pairs) {
    return errors::OutOfRange("number of pairs", num_pairs,
                              absl::StrCat("1..", max_pairs, " for ", header.num_rows(), " rows"));
  }
  uint32_t previous = 0;
  for (int pair = 0; pair < num_pairs; ++pair) {
    const uint32_t row = header.pair_rows(pair);
    const uint32_t expert = header.pair_experts(pair);
    if (row >= header.num_rows()) {
      return errors::OutOfRange("pair_rows", row, absl::StrCat("below ", header.num_rows()));
    }
    if (expert >= owned_.size()) {
      return errors::OutOfRange("pair_experts", expert, absl::StrCat("below ", owned_.size()));
    }
    if (expert < previous) {
      return errors::OutOfRange("pair_experts", expert,
                                absl::StrCat("at least ", previous, ", the one before"));
    }
    if (!owned_[expert]) {
      return absl::FailedPreconditionError(
          absl::StrCat("expert ", expert, " of layer ", header.layer(), " is not held here"));
    }
    previous = expert;
  }
  return absl::OkStatus();
}

}  // namespace conclave
