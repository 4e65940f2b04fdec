#include "router/admission.h"

#include <utility>

#include "common/errors.h"

namespace conclave {

absl::StatusOr<std::unique_ptr<Admission::Ticket>> Admission::Admit() {
  absl::MutexLock lock(&mutex_);
  if (draining_) return errors::Draining("router");
  if (inflight_ >= max_inflight_) return errors::Overloaded("router", max_inflight_);
  ++inflight_;
  metrics_->inflight().Set(inflight_);
  return std::make_unique<Ticket>(this);
}

void Admission::BeginDrain() {
  absl::MutexLock lock(&mutex_);
  if (!std::exchange(draining_, true)) metrics_->CountDrain();
}

bool Admission::WaitIdle(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(this, &Admission::Idle), deadline);
}

bool Admission::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

int Admission::inflight() const {
  absl::MutexLock lock(&mutex_);
  return inflight_;
}

void Admission::Release() {
  absl::MutexLock lock(&mutex_);
  --inflight_;
  metrics_->inflight().Set(inflight_);
}

}  // namespace conclave
