#include "router/timers.h"

namespace conclave {

Timers::Timers() : thread_([this] { ThreadMain(); }) {}

Timers::~Timers() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

Timers::Id Timers::RunAt(absl::Time when, absl::AnyInvocable<void()> callback) {
  absl::MutexLock lock(&mutex_);
  const Id id = next_id_++;
  pending_.emplace(Key(when, id), std::move(callback));
  times_.emplace(id, when);
  woken_ = true;
  return id;
}

bool Timers::Cancel(Id id) {
  absl::AnyInvocable<void()> dropped;  // destroyed after the lock: it may own what calls us
  absl::MutexLock lock(&mutex_);
  const auto time = times_.find(id);
  if (time == times_.end()) return false;
  const auto entry = pending_.find(Key(time->second, id));
  dropped = std::move(entry->second);
  pending_.erase(entry);
  times_.erase(time);
  return true;
}

void Timers::ThreadMain() {
  while (true) {
    absl::AnyInvocable<void()> due;
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
      woken_ = false;
      const absl::Time next =
          pending_.empty() ? absl::InfiniteFuture() : pending_.begin()->first.first;
      if (absl::Now() < next) {
        mutex_.AwaitWithDeadline(absl::Condition(this, &Timers::Woken), next);
        continue;
      }
      times_.erase(pending_.begin()->first.second);
      due = std::move(pending_.begin()->second);
      pending_.erase(pending_.begin());
    }
    due();
  }
}

}  // namespace conclave
