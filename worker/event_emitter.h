#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/conclave/v1/worker.pb.h"
#include "worker/sequence.h"

namespace conclave {

// Hands the events of each step to their sinks, in order, in a thread of its own: serializing and
// writing to the streams runs beside the next step instead of between two.
class EventEmitter {
 public:
  EventEmitter();
  // Hands out everything first.
  ~EventEmitter();
  EventEmitter(const EventEmitter&) = delete;
  EventEmitter& operator=(const EventEmitter&) = delete;

  // By one thread: these collect, and nothing is handed out before Flush.
  void OnEvent(std::shared_ptr<TokenSink> sink, v1::TokenEvent event);
  void OnDone(std::shared_ptr<TokenSink> sink, absl::Status status);
  // Blocks while the thread is limits::kMaxUnsentSteps behind.
  void Flush();

 private:
  struct Item {
    std::shared_ptr<TokenSink> sink;
    v1::TokenEvent event;
    std::optional<absl::Status> done;  // then there is no event
  };
  using Batch = std::vector<Item>;

  void ThreadMain();
  bool HasRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !batches_.empty();
  }

  Batch collected_;  // of the one thread
  absl::Mutex mutex_;
  std::deque<Batch> batches_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace conclave
