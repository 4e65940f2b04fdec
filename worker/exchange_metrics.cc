#include "worker/exchange_metrics.h"

namespace conclave {

const char* TransportName(Transport transport) {
  switch (transport) {
    case Transport::kSharedMemory:
      return "shared_memory";
    case Transport::kNccl:
      return "nccl";
    case Transport::kGrpc:
      break;
  }
  return "grpc";
}

ExchangeMetrics::ExchangeMetrics(Metrics* metrics)
    : local_rows(metrics->Counter("conclave_worker_shard_rows_total",
                                  "(row, expert) pairs by where they were computed",
                                  {{"shard", "local"}})),
      missing_experts(metrics->Gauge(
          "conclave_worker_missing_experts",
          "Experts of the model that no shard serves now: steps that need one wait")),
      shards_with_other_model(
          metrics->Gauge("conclave_worker_shards_with_other_model",
                         "Shards not used because they loaded another checkpoint")) {
  for (const Transport transport : kTransports) {
    const MetricLabels labels = {{"transport", TransportName(transport)}};
    OfTransport& mine = of(transport);
    mine.dispatch_bytes = &metrics->Counter("conclave_worker_dispatch_bytes_total",
                                            "Bytes of rows sent to shards", labels);
    mine.combine_bytes = &metrics->Counter("conclave_worker_combine_bytes_total",
                                           "Bytes of rows received from shards", labels);
    mine.dispatch_seconds = &metrics->Histogram("conclave_worker_dispatch_seconds",
                                                "From sending a dispatch to its whole answer",
                                                LatencyBuckets(), labels);
    mine.retries = &metrics->Counter("conclave_worker_dispatch_retries_total",
                                     "Dispatches sent again after a loss", labels);
  }
}

}  // namespace conclave
