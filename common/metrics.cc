#include "common/metrics.h"

#include <exception>

#include "absl/strings/str_cat.h"
#include "prometheus/text_serializer.h"

namespace conclave {
namespace {

prometheus::Histogram::BucketBoundaries Doubling(double first, int count) {
  prometheus::Histogram::BucketBoundaries buckets;
  for (int i = 0; i < count; ++i, first *= 2) buckets.push_back(first);
  return buckets;
}

}  // namespace

prometheus::Histogram::BucketBoundaries LatencyBuckets() { return Doubling(1e-4, 21); }
prometheus::Histogram::BucketBoundaries TokenBuckets() { return Doubling(1, 18); }

prometheus::Counter& Metrics::Counter(absl::string_view name, absl::string_view help,
                                      const MetricLabels& labels) {
  return prometheus::BuildCounter()
      .Name(std::string(name))
      .Help(std::string(help))
      .Register(*registry_)
      .Add(labels);
}

prometheus::Gauge& Metrics::Gauge(absl::string_view name, absl::string_view help,
                                  const MetricLabels& labels) {
  return prometheus::BuildGauge()
      .Name(std::string(name))
      .Help(std::string(help))
      .Register(*registry_)
      .Add(labels);
}

prometheus::Histogram& Metrics::Histogram(absl::string_view name, absl::string_view help,
                                          const prometheus::Histogram::BucketBoundaries& buckets,
                                          const MetricLabels& labels) {
  return prometheus::BuildHistogram()
      .Name(std::string(name))
      .Help(std::string(help))
      .Register(*registry_)
      .Add(labels, buckets);
}

void Metrics::RemoveGauge(absl::string_view name, const MetricLabels& labels) {
  prometheus::Family<prometheus::Gauge>& family =
      prometheus::BuildGauge().Name(std::string(name)).Register(*registry_);
  family.Remove(&family.Add(labels));
}

absl::StatusOr<int> Metrics::Serve(absl::string_view host, int port) {
  // prometheus-cpp throws when it cannot bind; no exception leaves our functions.
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(absl::StrCat(host, ":", port), 2);
    exposer_->RegisterCollectable(registry_);
    return exposer_->GetListeningPorts().front();
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", host, ":", port, ": ", error.what()));
  }
}

std::string Metrics::Text() const {
  return prometheus::TextSerializer().Serialize(registry_->Collect());
}

}  // namespace conclave
