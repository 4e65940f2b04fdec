#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "prometheus/counter.h"
#include "prometheus/exposer.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace conclave {

// Buckets shared by every latency histogram, so that dashboards can add them: 0.1 ms doubling up
// to 105 s.
prometheus::Histogram::BucketBoundaries LatencyBuckets();
// Token counts: powers of two, 1 to 131,072.
prometheus::Histogram::BucketBoundaries TokenBuckets();

using MetricLabels = prometheus::Labels;

// One process's metrics and the /metrics endpoint that serves them. Names are
// conclave_<service>_<what>_<unit>; label values come from closed sets, never ids.
class Metrics {
 public:
  Metrics() : registry_(std::make_shared<prometheus::Registry>()) {}

  // The metric of that name and labels, made on first use; references live as long as this, but for
  // those of a gauge that was removed.
  prometheus::Counter& Counter(absl::string_view name, absl::string_view help,
                               const MetricLabels& labels = {});
  prometheus::Gauge& Gauge(absl::string_view name, absl::string_view help,
                           const MetricLabels& labels = {});
  prometheus::Histogram& Histogram(absl::string_view name, absl::string_view help,
                                   const prometheus::Histogram::BucketBoundaries& buckets,
                                   const MetricLabels& labels = {});

  // Of something that is gone for good, where 0 would be taken for something that is down.
  void RemoveGauge(absl::string_view name, const MetricLabels& labels);

  // Serves GET /metrics on host:port (port 0 picks a free one); returns the port.
  // Unavailable if the port is taken. Call once.
  absl::StatusOr<int> Serve(absl::string_view host, int port);

  // What /metrics returns, for tests.
  std::string Text() const;

 private:
  std::shared_ptr<prometheus::Registry> registry_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace conclave
