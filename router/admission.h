#pragma once

#include <atomic>
#include <memory>

#include "absl/status/statusor.h"
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
  bool draining() const { return draining_.load(); }
  int inflight() const { return inflight_.load(); }

 private:
  void Release();

  const int max_inflight_;
  RouterMetrics* const metrics_;
  std::atomic<int> inflight_{0};
  std::atomic<bool> draining_{false};
};

}  // namespace conclave
