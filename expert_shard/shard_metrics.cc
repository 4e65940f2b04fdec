#include "expert_shard/shard_metrics.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace conclave {
namespace {

constexpr int64_t kLoadWindowPairs = 100'000;

}  // namespace

ShardMetrics::ShardMetrics(Metrics* metrics, const Qwen3Config& config)
    : rows_total(metrics->Counter("conclave_shard_rows_total", "(row, expert) pairs computed")),
      batches_total(metrics->Counter("conclave_shard_batches_total", "Batches computed")),
      batch_rows(metrics->Histogram("conclave_shard_batch_rows", "(row, expert) pairs of a batch",
                                    TokenBuckets())),
      batch_dispatches(metrics->Histogram("conclave_shard_batch_dispatches",
                                          "Dispatches merged into a batch", TokenBuckets())),
      compute_seconds(metrics->Histogram("conclave_shard_compute_seconds",
                                         "Time to compute a batch", LatencyBuckets())),
      queue_frames(metrics->Gauge("conclave_shard_queue_frames", "Dispatches that wait")),
      streams(metrics->Gauge("conclave_shard_streams", "Open streams, one a worker")),
      shared_memory_workers(
          metrics->Gauge("conclave_shard_shared_memory_workers",
                         "Workers of this host whose dispatches come through shared memory")),
      nccl_workers(metrics->Gauge("conclave_shard_nccl_workers",
                                  "Workers of this host whose dispatches come over NCCL")),
      ready(metrics->Gauge("conclave_shard_ready", "1 while loaded and not draining")),
      drains_total(metrics->Counter("conclave_shard_drains_total", "Drains begun")),
      metrics_(metrics),
      layers_(config.num_hidden_layers) {
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (!config.IsSparseLayer(layer)) continue;
    layers_[layer].pairs.resize(config.num_experts);
    layers_[layer].imbalance = &metrics->Gauge(
        "conclave_shard_expert_imbalance_ratio",
        "Pairs of the busiest expert here over the mean of the experts here, recent traffic",
        {{"layer", absl::StrCat(layer)}});
  }
}

void ShardMetrics::CountError(absl::StatusCode code) {
  metrics_
      ->Counter("conclave_shard_errors_total", "Dispatches answered with an error",
                {{"code", absl::StatusCodeToString(code)}})
      .Increment();
}

void ShardMetrics::AddLoad(int layer, absl::Span<const int> expert_ids,
                           absl::Span<const uint32_t> pair_experts) {
  LayerLoad& load = layers_[layer];
  for (const uint32_t expert : pair_experts) ++load.pairs[expert];
  load.total += static_cast<int64_t>(pair_experts.size());
  if (load.total > 2 * kLoadWindowPairs) {
    load.total = 0;
    for (int64_t& pairs : load.pairs) load.total += pairs /= 2;
  }
  if (load.total == 0) return;
  int64_t busiest = 0;
  for (const int expert : expert_ids) busiest = std::max(busiest, load.pairs[expert]);
  load.imbalance->Set(static_cast<double>(busiest) * static_cast<double>(expert_ids.size()) /
                      static_cast<double>(load.total));
}

}  // namespace conclave
