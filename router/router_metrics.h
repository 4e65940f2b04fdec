#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "proto/conclave/v1/inference.pb.h"

namespace conclave {

// "ok", "cancelled", ...: the status code in small letters.
std::string OutcomeLabel(absl::StatusCode code);

// Where a request went, seen from its prompt's beginning.
enum class PrefixRoute {
  kCached,    // to a worker that has most of it
  kBalanced,  // elsewhere, for that one has too much to do or cannot be used
  kUnknown,   // no worker is known to have it
};

// What became of computing a conversation's next prompt ahead.
enum class PrefillAheadOutcome {
  kDone,
  kDropped,  // other work came first, or the worker was lost
  kBusy,     // the worker had other work from the start
};

// Every metric of the router. Counters of tokens are the sums of the usages that were returned in
// `finished`, nothing else: a request that failed counts in requests_total alone. Thread-safe.
class RouterMetrics {
 public:
  explicit RouterMetrics(Metrics* metrics);

  // method: the RPC's name.
  void CountRequest(absl::string_view method, absl::StatusCode outcome);
  // Usage and thinking report of one request as the client got them.
  void CountFinished(const v1::Finished& finished);
  void CountFailover() { failovers_.Increment(); }
  void CountPrefixRoute(PrefixRoute route);
  void CountPrefillAhead(PrefillAheadOutcome outcome);
  void CountDrain() { drains_.Increment(); }

  // The sums of what CountFinished was told, over all modes.
  uint64_t num_thinking_tokens() const { return num_thinking_tokens_.load(); }
  uint64_t num_answer_tokens() const { return num_answer_tokens_.load(); }

  void ObserveFirstToken(absl::Duration since_start);
  void ObserveFirstAnswerToken(const v1::ThinkingReport& report, absl::Duration since_start);
  void ObserveInterToken(absl::Duration gap);

  prometheus::Gauge& inflight() { return inflight_; }
  prometheus::Gauge& waiting() { return waiting_; }  // admitted, held by no worker now
  prometheus::Gauge& workers() { return workers_; }
  prometheus::Gauge& workers_up() { return workers_up_; }
  prometheus::Gauge& workers_with_other_model() { return workers_with_other_model_; }
  prometheus::Gauge& adaptive_budget_scale() { return adaptive_budget_scale_; }

 private:
  void CountTokens(const v1::Usage& usage, uint32_t forced, absl::string_view mode);
  prometheus::Counter& ThinkingEnded(v1::ThinkingEnd end);
  prometheus::Histogram& FirstAnswer(absl::string_view mode);

  Metrics* const metrics_;
  std::atomic<uint64_t> num_thinking_tokens_{0}, num_answer_tokens_{0};
  prometheus::Counter& failovers_;
  prometheus::Counter& drains_;
  prometheus::Gauge& inflight_;
  prometheus::Gauge& waiting_;
  prometheus::Gauge& workers_;
  prometheus::Gauge& workers_up_;
  prometheus::Gauge& workers_with_other_model_;
  prometheus::Gauge& adaptive_budget_scale_;
  prometheus::Histogram& thinking_tokens_;
  prometheus::Histogram& budget_used_ratio_;
  prometheus::Histogram& first_token_;
  prometheus::Histogram& inter_token_;
};

}  // namespace conclave
