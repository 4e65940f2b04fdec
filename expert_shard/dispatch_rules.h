#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "model/qwen3_config.h"
#include "proto/conclave/v1/expert_shard.pb.h"

namespace conclave {

// What a shard accepts: its model's shape, its experts, its epoch. Immutable.
class DispatchRules {
 public:
  DispatchRules(const Qwen3Config& config, absl::Span<const int> expert_ids,
                uint64_t placement_epoch);

  size_t row_bytes() const { return static_cast<size_t>(hidden_size_) * 2; }  // BF16

  // Errors: FailedPrecondition (placement_epoch is another; or an expert that is not here),
  // InvalidArgument (layer that has no experts; lists that are empty, of different lengths,
  // unsorted or longer than num_rows * num_experts_per_tok; a row or expert out of range; a tensor
  // whose length is not num_rows rows).
  absl::Status Check(const v1::ExpertDispatch& header, size_t tensor_bytes) const;

 private:
  absl::Status CheckShape(const v1::ExpertDispatch& header, size_t tensor_bytes) const;
  absl::Status CheckPairs(const v1::ExpertDispatch& header) const;

  const int hidden_size_;
  const int num_experts_per_tok_;
  const uint64_t placement_epoch_;
  std::vector<bool> sparse_;  // [num_hidden_layers]
  std::vector<bool> owned_;   // [num_experts]
};

}  // namespace conclave
