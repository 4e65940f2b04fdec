#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/metrics.h"
#include "model/qwen3_config.h"

namespace conclave {

// Everything a shard reports, conclave_shard_*. Thread-safe, but for AddLoad.
class ShardMetrics {
 public:
  ShardMetrics(Metrics* metrics, const Qwen3Config& config);

  prometheus::Counter& rows_total;
  prometheus::Counter& batches_total;
  prometheus::Histogram& batch_rows;
  prometheus::Histogram& batch_dispatches;
  prometheus::Histogram& compute_seconds;
  prometheus::Gauge& queue_frames;
  prometheus::Gauge& streams;
  prometheus::Gauge& shared_memory_workers;
  prometheus::Gauge& nccl_workers;
  prometheus::Gauge& ready;
  prometheus::Counter& drains_total;

  void CountError(absl::StatusCode code);

  // Counts the pairs of a batch and sets the layer's imbalance: pairs of the busiest expert of
  // `expert_ids` over their mean, over about the last 100,000 pairs. By one thread only.
  void AddLoad(int layer, absl::Span<const int> expert_ids,
               absl::Span<const uint32_t> pair_experts);

 private:
  struct LayerLoad {
    std::vector<int64_t> pairs;  // [num_experts]
    int64_t total = 0;
    prometheus::Gauge* imbalance = nullptr;  // null for a dense layer
  };

  Metrics* const metrics_;
  std::vector<LayerLoad> layers_;
};

}  // namespace conclave
