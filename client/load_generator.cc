#include "client/load_generator.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <list>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "proto/conclave/v1/inference.grpc.pb.h"
#include "rpc/grpc_status.h"

namespace conclave {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);

// Time since it was made, by a clock that is never set.
class Stopwatch {
 public:
  int64_t Nanoseconds() const {
    return std::chrono::nanoseconds(std::chrono::steady_clock::now() - start_).count();
  }
  absl::Duration Elapsed() const { return absl::Nanoseconds(Nanoseconds()); }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// What the streams share with the thread that starts them.
struct Shared {
  Stopwatch clock;
  std::atomic<int64_t> tokens{0};
  absl::Mutex mutex;
  std::vector<class Stream*> done ABSL_GUARDED_BY(mutex);

  bool AnyDone() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return !done.empty(); }
};

// One call in flight. gRPC's threads write the record until the stream is in Shared::done.
class Stream {
 public:
  Stream(RequestRecord* record, std::shared_ptr<Shared> shared)
      : record_(record), shared_(std::move(shared)) {}
  virtual ~Stream() = default;

  const RequestRecord& record() const { return *record_; }
  void Cancel() {
    cancelled_.store(true);
    context_.TryCancel();
  }

 protected:
  grpc::ClientContext& context() { return context_; }

  void NoteIds(int num_ids, bool thinking) {
    if (num_ids == 0) return;
    const int64_t now = shared_->clock.Nanoseconds();
    record_->tokens.push_back({now, num_ids});
    if (!thinking && !record_->first_answer) record_->first_answer = absl::Nanoseconds(now);
    shared_->tokens.fetch_add(num_ids, std::memory_order_relaxed);
  }
  void NoteFinished(const v1::Finished& finished) {
    record_->report = finished;
    finished_ = true;
  }
  void End(const grpc::Status& status) {
    // The thread that starts streams deletes this one, and may end the load, once it is in `done`.
    const std::shared_ptr<Shared> shared = shared_;
    record_->finished = shared->clock.Elapsed();
    record_->status = FromGrpcStatus(status);
    record_->cut_short = cancelled_.load() && absl::IsCancelled(record_->status);
    if (record_->status.ok() && !finished_) {
      record_->status = absl::InternalError("the stream ended without a \"finished\" event");
    }
    absl::MutexLock lock(&shared->mutex);
    shared->done.push_back(this);
  }

 private:
  RequestRecord* const record_;
  const std::shared_ptr<Shared> shared_;
  grpc::ClientContext context_;
  std::atomic<bool> cancelled_{false};
  bool finished_ = false;
};

template <typename Event>
class StreamOf final : public Stream, private grpc::ClientReadReactor<Event> {
 public:
  template <typename Request>
  StreamOf(const std::shared_ptr<grpc::Channel>& channel, const Request& request,
           absl::Duration timeout, RequestRecord* record, const std::shared_ptr<Shared>& shared)
      : Stream(record, shared) {
    context().set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    Call(*v1::Inference::NewStub(channel), request);
    this->StartRead(&event_);
    this->StartCall();
  }

 private:
  void Call(v1::Inference::Stub& stub, const v1::GenerateRequest& request) {
    stub.async()->Generate(&context(), &request, this);
  }
  void Call(v1::Inference::Stub& stub, const v1::ChatRequest& request) {
    stub.async()->Chat(&context(), &request, this);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    Note(event_);
    this->StartRead(&event_);
  }
  void OnDone(const grpc::Status& status) override { End(status); }

  void Note(const v1::GenerateEvent& event) {
    if (event.has_delta()) NoteIds(event.delta().ids_size(), /*thinking=*/false);
    if (event.has_finished()) NoteFinished(event.finished());
  }
  void Note(const v1::ChatEvent& event) {
    if (event.has_thinking_delta()) NoteIds(event.thinking_delta().ids_size(), /*thinking=*/true);
    if (event.has_content_delta()) NoteIds(event.content_delta().ids_size(), /*thinking=*/false);
    if (event.has_finished()) NoteFinished(event.finished());
  }

  Event event_;
};

std::unique_ptr<Stream> StartStream(const LoadOptions& options, int64_t number,
                                    const LoadRequest& request, RequestRecord* record,
                                    const std::shared_ptr<Shared>& shared) {
  const auto& channel = options.channels[number % options.channels.size()];
  if (const auto* chat = std::get_if<v1::ChatRequest>(&request.request)) {
    return std::make_unique<StreamOf<v1::ChatEvent>>(channel, *chat, options.timeout, record,
                                                     shared);
  }
  return std::make_unique<StreamOf<v1::GenerateEvent>>(
      channel, std::get<v1::GenerateRequest>(request.request), options.timeout, record, shared);
}

// The state of one RunLoad; its own thread's alone but for Shared.
class Load {
 public:
  Load(const LoadOptions& options, std::vector<LoadRequest> requests)
      : options_(options), requests_(std::move(requests)) {
    result_.records.resize(requests_.size());
  }

  LoadResult Run(const std::function<void(const LoadProgress&)>& progress,
                 const std::function<bool()>& stop) {
    absl::Duration next_tick = kTick;
    while (true) {
      SendDue();
      if (streams_.empty() && !MoreToSend()) break;
      AwaitDone(std::min(next_tick, NextArrival()));
      if (shared_->clock.Elapsed() < next_tick) continue;
      next_tick = shared_->clock.Elapsed() + kTick;
      progress(Progress());
      if (!result_.stopped && stop()) Stop();
    }
    progress(Progress());
    return Result();
  }

 private:
  bool MoreToSend() const { return !result_.stopped && num_sent_ < Total(); }
  bool HasRoom() const { return static_cast<int>(streams_.size()) < options_.concurrency; }
  int64_t Total() const { return static_cast<int64_t>(requests_.size()); }

  absl::Duration NextArrival() const {
    return MoreToSend() && HasRoom() ? requests_[num_sent_].arrival : absl::InfiniteDuration();
  }

  void SendDue() {
    while (MoreToSend() && HasRoom()) {
      LoadRequest& request = requests_[num_sent_];
      const absl::Duration now = shared_->clock.Elapsed();
      if (request.arrival > now) return;
      RequestRecord& record = result_.records[num_sent_];
      record.thinks = request.thinks;
      record.sent = now;
      record.arrival = request.arrival > absl::ZeroDuration() ? request.arrival : now;
      streams_.push_back(StartStream(options_, num_sent_++, request, &record, shared_));
      result_.peak_in_flight =
          std::max(result_.peak_in_flight, static_cast<int64_t>(streams_.size()));
    }
  }

  void AwaitDone(absl::Duration until) {
    std::vector<Stream*> done;
    {
      absl::MutexLock lock(&shared_->mutex);
      shared_->mutex.AwaitWithTimeout(
          absl::Condition(shared_.get(), &Shared::AnyDone),
          std::max(absl::ZeroDuration(), until - shared_->clock.Elapsed()));
      done.swap(shared_->done);
    }
    for (const Stream* stream : done) {
      const RequestRecord& record = stream->record();
      if (record.status.ok()) ++num_finished_;
      if (!record.status.ok() && !record.cut_short) ++num_failed_;
      streams_.remove_if([stream](const auto& other) { return other.get() == stream; });
    }
  }

  void Stop() {
    result_.stopped = true;
    for (const auto& stream : streams_) stream->Cancel();
  }

  LoadProgress Progress() const {
    return {.total = Total(),
            .finished = num_finished_,
            .failed = num_failed_,
            .in_flight = static_cast<int64_t>(streams_.size()),
            .tokens = shared_->tokens.load(),
            .elapsed = shared_->clock.Elapsed()};
  }

  LoadResult Result() {
    result_.records.resize(num_sent_);
    absl::Duration last;
    for (const RequestRecord& record : result_.records) last = std::max(last, record.finished);
    if (num_sent_ > 0) result_.elapsed = last - result_.records.front().sent;
    return std::move(result_);
  }

  const LoadOptions& options_;
  std::vector<LoadRequest> requests_;
  LoadResult result_;  // records never move while streams write them
  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  std::list<std::unique_ptr<Stream>> streams_;
  int64_t num_sent_ = 0, num_finished_ = 0, num_failed_ = 0;
};

}  // namespace

int64_t RequestRecord::num_tokens() const {
  int64_t count = 0;
  for (const TokenArrival& token : tokens) count += token.num_ids;
  return count;
}

LoadResult RunLoad(const LoadOptions& options, std::vector<LoadRequest> requests,
                   const std::function<void(const LoadProgress&)>& progress,
                   const std::function<bool()>& stop) {
  return Load(options, std::move(requests)).Run(progress, stop);
}

}  // namespace conclave
