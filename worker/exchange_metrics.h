#pragma once

#include <array>
#include <cstddef>

#include "common/metrics.h"

namespace conclave {

// How frames go to a shard.
enum class Transport { kGrpc, kSharedMemory, kNccl };
inline constexpr std::array<Transport, 3> kTransports = {Transport::kGrpc, Transport::kSharedMemory,
                                                         Transport::kNccl};

// As in the label "transport" and in `conclave status`.
const char* TransportName(Transport transport);

// What a worker reports of its shards, conclave_worker_*. Thread-safe.
struct ExchangeMetrics {
  struct OfTransport {
    prometheus::Counter* dispatch_bytes = nullptr;
    prometheus::Counter* combine_bytes = nullptr;
    prometheus::Histogram* dispatch_seconds = nullptr;
    prometheus::Counter* retries = nullptr;
  };

  explicit ExchangeMetrics(Metrics* metrics);

  OfTransport& of(Transport transport) { return transports[static_cast<size_t>(transport)]; }

  std::array<OfTransport, kTransports.size()> transports;
  prometheus::Counter& local_rows;
  prometheus::Gauge& missing_experts;
  prometheus::Gauge& shards_with_other_model;
};

}  // namespace conclave
