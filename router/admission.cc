#include "router/admission.h"

#include "common/errors.h"

namespace conclave {

absl::StatusOr<std::unique_ptr<Admission::Ticket>> Admission::Admit() {
  if (draining_.load()) return errors::Draining("router");
  if (inflight_.fetch_add(1) >= max_inflight_) {
    inflight_.fetch_sub(1);
    return errors::Overloaded("router", max_inflight_);
  }
  metrics_->inflight().Increment();
  return std::make_unique<Ticket>(this);
}

void Admission::BeginDrain() {
  if (!draining_.exchange(true)) metrics_->CountDrain();
}

void Admission::Release() {
  inflight_.fetch_sub(1);
  metrics_->inflight().Decrement();
}

}  // namespace conclave
