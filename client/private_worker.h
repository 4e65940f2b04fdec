#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/child_process.h"

namespace conclave {

// A conclave-worker process of our own on a free loopback port, with every expert inside: how the
// command line computes, for it holds no engine itself. Stopped and reaped by the destructor.
class PrivateWorker {
 public:
  // Runs argv plus --listen, and returns once the worker is ready. Call from the main thread,
  // before any gRPC channel exists. Unavailable with its last line on standard error if it ends
  // instead; DeadlineExceeded after `ready_deadline`; NotFound if there is no such program.
  static absl::StatusOr<std::unique_ptr<PrivateWorker>> Start(std::vector<std::string> argv,
                                                              absl::Duration ready_deadline);
  // SIGTERM, then SIGKILL after 10 s.
  ~PrivateWorker();

  // Its gRPC target.
  const std::string& target() const { return target_; }

 private:
  explicit PrivateWorker(ChildProcess child);

  // Reads both pipes until the worker closes them: a full pipe would stop it.
  void PumpPipes();
  void HandleLine(const std::string& line, bool is_event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status WaitReady(absl::Duration deadline);

  ChildProcess child_;
  absl::Mutex mutex_;
  bool listening_ ABSL_GUARDED_BY(mutex_) = false;
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;  // it has closed its pipes
  std::string last_words_ ABSL_GUARDED_BY(mutex_);
  std::string target_;  // written before ready_
  std::thread pump_;
};

}  // namespace conclave
