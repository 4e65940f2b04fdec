#pragma once

#include <cstdint>
#include <map>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace conclave {

// Runs callbacks at given times on one thread of its own. Callbacks must not block. Thread-safe.
class Timers {
 public:
  using Id = uint64_t;

  Timers();
  // Waits for a callback that is running; the others are dropped.
  ~Timers();
  Timers(const Timers&) = delete;
  Timers& operator=(const Timers&) = delete;

  Id RunAt(absl::Time when, absl::AnyInvocable<void()> callback);
  // False if the callback has run or is running: then it is too late.
  bool Cancel(Id id);

 private:
  using Key = std::pair<absl::Time, Id>;

  void ThreadMain();
  // Changed since the thread last looked: it may have to wake earlier.
  bool Woken() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return woken_ || stopping_; }

  absl::Mutex mutex_;
  std::map<Key, absl::AnyInvocable<void()>> pending_ ABSL_GUARDED_BY(mutex_);
  std::map<Id, absl::Time> times_ ABSL_GUARDED_BY(mutex_);
  Id next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace conclave
