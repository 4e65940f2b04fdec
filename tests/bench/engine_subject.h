#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/check.h"
#include "common/metrics.h"
#include "tests/bench/table.h"
#include "worker/worker_runtime.h"

namespace conclave {

// When each token of a request came.
class TimingSink : public TokenSink {
 public:
  void OnEvent(v1::TokenEvent event) override {
    const double now = WallSeconds();
    absl::MutexLock lock(&mutex_);
    times_.insert(times_.end(), event.ids_size(), now);
  }
  void OnDone(const absl::Status& status) override {
    absl::MutexLock lock(&mutex_);
    status_ = status;
    done_ = true;
  }
  bool Writable() const override { return true; }
  bool Cancelled() const override { return false; }

  std::vector<double> Wait() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&done_));
    CHECK(status_.ok()) << status_.ToString();
    return times_;
  }

 private:
  absl::Mutex mutex_;
  std::vector<double> times_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
};

// One loaded model.
class Subject {
 public:
  explicit Subject(const WorkerRuntimeOptions& runtime) {
    absl::StatusOr<std::unique_ptr<WorkerRuntime>> opened = WorkerRuntime::Open(runtime);
    CHECK(opened.ok()) << opened.status().ToString();
    runtime_ = *std::move(opened);
    const absl::Status loaded = runtime_->Load(metrics_, [](absl::string_view) {});
    CHECK(loaded.ok()) << loaded.ToString();
  }

  const Qwen3Config& config() const { return runtime_->config(); }

  // Submits a request of made-up ids that no earlier one had: nothing is found in a cache.
  std::shared_ptr<TimingSink> Submit(int prompt_tokens, int new_tokens) {
    // The last ids of a tokenizer are its control tokens.
    const int64_t num_ids =
        std::max<int64_t>(256, runtime_->engine().options().limits.num_ids - 64);
    v1::TokenRequest request;
    request.set_request_id(absl::StrCat("bench-", num_requests_++));
    for (int i = 0; i < prompt_tokens; ++i) {
      request.add_prompt_ids(static_cast<uint32_t>(random_() % num_ids));
    }
    request.set_max_tokens(static_cast<uint32_t>(new_tokens));
    request.set_ignore_eos(true);
    auto sink = std::make_shared<TimingSink>();
    const absl::Status status = runtime_->engine().Submit(request, absl::InfiniteFuture(), sink);
    CHECK(status.ok()) << status.ToString();
    return sink;
  }

  int64_t kv_tokens() const {
    return runtime_->engine().options().num_kv_blocks * limits::kKvBlockTokens;
  }

  // Seconds of a step of `sequences`, between the moment when all have a token and the moment when
  // the first has its last.
  double DecodeStepSeconds(int sequences, int prompt_tokens, int new_tokens) {
    std::vector<std::shared_ptr<TimingSink>> sinks;
    for (int i = 0; i < sequences; ++i) sinks.push_back(Submit(prompt_tokens, new_tokens));
    double begin = 0, end = std::numeric_limits<double>::infinity();
    std::vector<double> all;
    for (const auto& sink : sinks) {
      const std::vector<double> times = sink->Wait();
      begin = std::max(begin, times.front());
      end = std::min(end, times.back());
      all.insert(all.end(), times.begin(), times.end());
    }
    const auto tokens = std::count_if(all.begin(), all.end(),
                                      [&](double time) { return time > begin && time <= end; });
    CHECK(tokens > 0) << "sequences did not run together: give more --new_tokens";
    return (end - begin) * sequences / static_cast<double>(tokens);
  }

  double PrefillSeconds(int tokens) {
    const double begin = WallSeconds();
    return Submit(tokens, 1)->Wait().front() - begin;
  }

 private:
  Metrics metrics_;  // outlives the runtime
  std::unique_ptr<WorkerRuntime> runtime_;
  std::mt19937 random_{1};
  int num_requests_ = 0;
};

}  // namespace conclave
