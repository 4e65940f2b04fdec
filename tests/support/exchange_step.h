#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/support/test_shard.h"
#include "worker/expert_exchange.h"
#include "worker/local_expert_exchange.h"

namespace conclave {

using Rows = std::vector<BFloat16>;

// A batch and where its pairs' rows are, copied: [num_rows * num_experts_per_tok, hidden_size].
struct ExchangeStep {
  ExchangeStep(const TestModel& model, int layer, int64_t num_rows, uint64_t seed)
      : rows(RandomRows(num_rows, model.config().hidden_size, seed)),
        topk_ids(RandomTopk(model.config(), num_rows, seed)) {
    batch.layer = layer;
    batch.hidden_states = rows.data();
    batch.topk_ids = topk_ids.data();
    batch.num_rows = num_rows;
  }
  ExchangeStep(const ExchangeStep&) = delete;

  absl::StatusOr<Rows> Run(ExpertExchange& exchange) const {
    std::vector<const BFloat16*> expert_rows;
    const absl::Status status = exchange.Run(batch, expert_rows);
    if (!status.ok()) return status;
    EXPECT_EQ(expert_rows.size(), topk_ids.size());
    const size_t hidden = rows.size() / batch.num_rows;
    Rows copy;
    for (const BFloat16* row : expert_rows) copy.insert(copy.end(), row, row + hidden);
    return copy;
  }

  Rows rows;
  std::vector<int32_t> topk_ids;
  ExpertBatch batch;
};

// What a step gives with every expert in process.
inline Rows RunInProcess(TestModel& model, const ExchangeStep& step) {
  LocalExpertExchange local(model.config(), model.LoadRunner(model.AllExperts()));
  absl::StatusOr<Rows> rows = step.Run(local);
  EXPECT_OK(rows);
  return rows.ok() ? *rows : Rows();
}

}  // namespace conclave
