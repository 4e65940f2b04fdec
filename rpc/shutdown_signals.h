#pragma once

#include <signal.h>

#include <atomic>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

namespace conclave {

// Turns SIGTERM and SIGINT into an event. Both are blocked in every thread and taken by one thread
// with sigwait, so that no code runs inside a signal handler. A second signal ends the process at
// once with status 1: whoever sends it does not want to wait for the drain.
//
// Made first in main, before any other thread starts, for threads inherit the blocked signals; so
// do child processes, which must unblock them before exec. SIGPIPE is ignored: a reader of stdout
// that went away must not end a server.
class ShutdownSignals {
 public:
  ShutdownSignals();
  ~ShutdownSignals();
  ShutdownSignals(const ShutdownSignals&) = delete;
  ShutdownSignals& operator=(const ShutdownSignals&) = delete;

  // Blocks until the first signal or Fail. Any thread.
  void Wait() { requested_.WaitForNotification(); }

  // For what the process cannot go on after; `failure` is not OK. Does not block. Any thread.
  void Fail(const absl::Status& failure);
  // Of the Fail that ended the wait; OK if a signal did, or nothing has yet. Any thread.
  absl::Status failure();

  // For work that takes long, such as loading weights, to give up early. Any thread.
  bool Requested() const { return requested_.HasBeenNotified(); }

 private:
  void ThreadMain();

  sigset_t signals_;
  sigset_t previous_mask_;
  absl::Notification requested_;
  absl::Mutex mutex_;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace conclave
