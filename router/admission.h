#pragma once

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "router/router_metrics.h"

namespace conclave {

// Bounds the requests in flight: admitted and not finished, wherever they wait. Thread-safe.
class Admission {
 public:
  // One request's place; gives it back when destroyed. The Admission must outlive it.
  class Ticket {
   public:
    explicit Ticket(Admission* admission) : admission_(admission) {}
    ~Ticket() { admission_->Release(); }
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

   private:
    Admission* const admission_;
  };

  // max_inflight >= 1.
  Admission(int max_inflight, RouterMetrics* metrics)
      : max_inflight_(max_inflight), metrics_(metrics) {}

  // RESOURCE_EXHAUSTED if full, UNAVAILABLE once draining.
  absl::StatusOr<std::unique_ptr<Ticket>> Admit();

  void BeginDrain();
  // Blocks until nothing is in flight: true, or the deadline passes: false.
  bool WaitIdle(absl::Time deadline);

  bool draining() const;
  int inflight() const;

 private:
  void Release();
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return inflight_ == 0; }

  const int max_inflight_;
  RouterMetrics* const metrics_;
  mutable absl::Mutex mutex_;
  int inflight_ ABSL_GUARDED_BY(mutex_) = 0;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace conclave
