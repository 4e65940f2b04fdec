#pragma once

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "router/prompt_builder.h"
#include "router/router_metrics.h"

namespace conclave {

struct BudgetCeilings {
  int64_t other_keys = -1;                         // of callers not named; -1: no limit
  absl::flat_hash_map<std::string, int64_t> keys;  // by API key
};

// Of a JSON file {"default": N, "keys": {"KEY": N, ...}}, N being -1 (no limit) or more.
// Errors: NotFound; InvalidArgument naming file and field, never a key.
absl::StatusOr<BudgetCeilings> LoadBudgetCeilings(const std::string& path);

struct BudgetPolicyOptions {
  BudgetCeilings ceilings;
  // Requests waiting per ready worker past which new budgets shrink; 0: they never do.
  double adaptive_queue = 0;
  int64_t adaptive_floor = 256;                 // below it nothing is taken away
  absl::Duration smoothing = absl::Seconds(5);  // time constant of the queue's average
};

// The cluster's say in thinking budgets: a ceiling by API key, and less for everybody while
// requests queue. What is taken away is in the request's thinking report. Thread-safe.
class BudgetPolicy {
 public:
  BudgetPolicy(BudgetPolicyOptions options, RouterMetrics* metrics);

  // The queue's length now; the average of these decides.
  void ObserveQueue(double waiting_per_worker, absl::Time now);
  // set point / average queue, at most 1: continuous, so that budgets never jump.
  double scale() const;

  // -1: no limit.
  int64_t CeilingOf(absl::string_view api_key) const;

  // Lowers the request's budget to what its caller may have now: the ceiling first, then
  // floor + (budget - floor) * scale. An unlimited budget counts as max_tokens for that. Sets
  // `budget` and `limited_by` of the report and the automaton's budget. With thinking off only the
  // ceiling counts.
  void Apply(absl::string_view api_key, PreparedRequest* prepared) const;

 private:
  const BudgetPolicyOptions options_;
  RouterMetrics* const metrics_;
  mutable absl::Mutex mutex_;
  double queue_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time observed_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace conclave
