#pragma once

#include <memory>
#include <vector>

#include "expert_shard/expert_runner.h"
#include "model/qwen3_config.h"
#include "worker/expert_exchange.h"
#include "worker/pair_order.h"

namespace conclave {

// Every expert in this process: no wire, the same bits.
class LocalExpertExchange final : public ExpertExchange {
 public:
  LocalExpertExchange(const Qwen3Config& config, std::unique_ptr<ExpertRunner> runner);

  // FailedPrecondition if the runner lacks an expert.
  absl::Status Run(const ExpertBatch& batch, std::vector<const BFloat16*>& expert_rows) override;
  absl::Status Ready() override;
  std::vector<v1::ShardState> Shards() override { return {}; }

 private:
  const Qwen3Config config_;
  const std::unique_ptr<ExpertRunner> runner_;
  PairOrder order_;
  std::vector<BFloat16> output_;  // [num_pairs, hidden_size] of the last Run
};

}  // namespace conclave
