#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics.h"
#include "model/synthetic.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"
#include "worker/worker_runtime.h"

namespace conclave {

// Collects one request's events, for tests to wait on.
class CollectingSink : public TokenSink {
 public:
  void OnEvent(v1::TokenEvent event) override {
    absl::MutexLock lock(&mutex_);
    ids_.insert(ids_.end(), event.ids().begin(), event.ids().end());
    events_.push_back(std::move(event));
  }
  void OnDone(const absl::Status& status) override {
    absl::MutexLock lock(&mutex_);
    status_ = status;
    done_ = true;
  }
  bool Writable() const override { return true; }
  bool Cancelled() const override {
    absl::MutexLock lock(&mutex_);
    return cancelled_;
  }

  void Cancel() {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
  }
  // Blocks until the request ended; a test that hangs fails instead.
  absl::Status Wait() {
    absl::MutexLock lock(&mutex_);
    if (!mutex_.AwaitWithTimeout(absl::Condition(&done_), absl::Seconds(120))) {
      return absl::DeadlineExceededError("the request did not end in two minutes");
    }
    return status_;
  }
  bool WaitForIds(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return ids_.size() >= count || done_; };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(120)) &&
           ids_.size() >= count;
  }
  std::vector<uint32_t> ids() const {
    absl::MutexLock lock(&mutex_);
    return ids_;
  }
  v1::TokenEvent last_event() const {
    absl::MutexLock lock(&mutex_);
    return events_.back();
  }
  std::vector<v1::TokenEvent> events() const {
    absl::MutexLock lock(&mutex_);
    return events_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::vector<v1::TokenEvent> events_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t> ids_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

// A loaded worker without its gRPC door.
class TestWorker {
 public:
  explicit TestWorker(const WorkerRuntimeOptions& options) {
    absl::StatusOr<std::unique_ptr<WorkerRuntime>> opened = WorkerRuntime::Open(options);
    if (!opened.ok()) {
      ADD_FAILURE() << opened.status();
      return;
    }
    runtime_ = *std::move(opened);
    EXPECT_OK(runtime_->Load(metrics_, [](absl::string_view) {}));
  }

  WorkerRuntime& runtime() { return *runtime_; }
  Engine& engine() { return runtime_->engine(); }
  Metrics& metrics() { return metrics_; }

  std::shared_ptr<CollectingSink> Submit(const v1::TokenRequest& request) {
    auto sink = std::make_shared<CollectingSink>();
    EXPECT_OK(engine().Submit(request, absl::InfiniteFuture(), sink));
    return sink;
  }

  // The ids of one request run to its end.
  std::vector<uint32_t> Run(const v1::TokenRequest& request) {
    const auto sink = Submit(request);
    EXPECT_OK(sink->Wait());
    return sink->ids();
  }

 private:
  Metrics metrics_;  // outlives the runtime
  std::unique_ptr<WorkerRuntime> runtime_;
};

inline WorkerRuntimeOptions SmallWorker(const std::string& model_dir) {
  WorkerRuntimeOptions options;
  options.model_dir = model_dir;
  options.threads = 2;
  options.kv_cache_tokens = 4096;
  return options;
}

// A request of `prompt_length` made-up ids; greedy unless the caller says otherwise.
inline v1::TokenRequest MakeRequest(const std::string& id, int prompt_length, int max_tokens) {
  v1::TokenRequest request;
  request.set_request_id(id);
  for (int i = 0; i < prompt_length; ++i) {
    request.add_prompt_ids(static_cast<uint32_t>((prompt_length * 31 + i * i * 7 + i) % 256));
  }
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_seed(static_cast<uint64_t>(prompt_length));
  return request;
}

}  // namespace conclave
