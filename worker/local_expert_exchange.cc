#include "worker/local_expert_exchange.h"

#include <utility>

#include "common/errors.h"
#include "common/status_macros.h"

namespace conclave {

LocalExpertExchange::LocalExpertExchange(const Qwen3Config& config,
                                         std::unique_ptr<ExpertRunner> runner)
    : config_(config), runner_(std::move(runner)) {}

absl::Status LocalExpertExchange::Run(const ExpertBatch& batch,
                                      std::vector<const BFloat16*>& expert_rows) {
  SortPairs(batch, config_.num_experts_per_tok, config_.num_experts, &order_);
  const size_t num_pairs = order_.slots.size();
  const size_t hidden_size = static_cast<size_t>(config_.hidden_size);
  if (output_.size() < num_pairs * hidden_size) output_.resize(num_pairs * hidden_size);
  RETURN_IF_ERROR(runner_->Run(batch.layer, batch.hidden_states, batch.num_rows, order_.rows,
                               order_.experts, output_.data()));
  expert_rows.resize(num_pairs);
  for (size_t pair = 0; pair < num_pairs; ++pair) {
    expert_rows[order_.slots[pair]] = output_.data() + pair * hidden_size;
  }
  return absl::OkStatus();
}

absl::Status LocalExpertExchange::Ready() {
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
    if (!config_.IsSparseLayer(layer)) continue;
    std::vector<int> missing;
    for (int expert = 0; expert < config_.num_experts; ++expert) {
      if (!runner_->Holds(layer, expert)) missing.push_back(expert);
    }
    if (!missing.empty()) return errors::ExpertsMissing(layer, missing, absl::ZeroDuration());
  }
  return absl::OkStatus();
}

}  // namespace conclave
