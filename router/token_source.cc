#include "router/token_source.h"

#include <algorithm>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/log.h"
#include "rpc/grpc_status.h"

namespace conclave {
namespace {

enum class StreamEnd {
  kRefused,   // the worker is full: another may not be
  kLost,      // the worker or the way to it is broken: another can go on
  kAnswered,  // the request itself cannot be served anywhere
};

// Of a call that ended before its request was finished.
StreamEnd Classify(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return StreamEnd::kRefused;
    case absl::StatusCode::kOk:           // ended in the middle, without an error
    case absl::StatusCode::kUnavailable:  // also: drains, lost its experts
    case absl::StatusCode::kInternal:     // gRPC's word for a reset stream; a broken device
    case absl::StatusCode::kUnknown:      // died in a handler
    case absl::StatusCode::kCancelled:    // not by us: its process shuts down
    case absl::StatusCode::kAborted:
      return StreamEnd::kLost;
    default:
      return StreamEnd::kAnswered;
  }
}

// Unique in the cluster even if two clients choose one id, or a worker still holds an attempt that
// broke: the client's id stays in front, for logs.
std::string MakeWorkerRequestId(absl::string_view request_id) {
  static constexpr size_t kSuffixBytes = 24;  // "#", 16 digits, ".", the attempt
  return absl::StrCat(request_id.substr(0, limits::kMaxRequestIdBytes - kSuffixBytes), "#",
                      absl::Hex(absl::Uniform<uint64_t>(absl::BitGen()), absl::kZeroPad16));
}

}  // namespace

TokenSource::TokenSource(WorkerPool* pool, RouterMetrics* metrics, TokenSourceOptions options,
                         std::weak_ptr<Listener> listener)
    : pool_(pool),
      metrics_(metrics),
      options_(std::move(options)),
      listener_(std::move(listener)) {}

void TokenSource::Start(v1::TokenRequest request, absl::Time deadline, std::string traceparent) {
  absl::MutexLock lock(&mutex_);
  if (phase_ == Phase::kEnded) return;
  worker_request_id_ = MakeWorkerRequestId(request.request_id());
  request_ = std::move(request);
  wanted_.prefix = PrefixMap::KeysOf(request_.prompt_ids());
  deadline_ = deadline;
  traceparent_ = std::move(traceparent);
  NextWorker();
}

void TokenSource::Read() {
  {
    absl::MutexLock lock(&mutex_);
    wants_read_ = true;
    if (phase_ == Phase::kStreaming) stream_->Read();
  }
  DeliverEnd();
}

void TokenSource::Cancel() {
  std::optional<WorkerPool::WaitId> wait;
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    wait = std::exchange(wait_, std::nullopt);
    if (stream_ != nullptr) stream_->Cancel();
    stream_ = nullptr;
    SetPhase(Phase::kEnded);
  }
  if (wait.has_value()) pool_->CancelWait(*wait);
}

uint32_t TokenSource::failovers() const {
  absl::MutexLock lock(&mutex_);
  return failovers_;
}

int TokenSource::worker() const {
  absl::MutexLock lock(&mutex_);
  return worker_;
}

std::vector<uint32_t> TokenSource::tokens() const {
  absl::MutexLock lock(&mutex_);
  std::vector<uint32_t> tokens(request_.prompt_ids().begin(), request_.prompt_ids().end());
  tokens.insert(tokens.end(), request_.generated_ids().begin(), request_.generated_ids().end());
  return tokens;
}

void TokenSource::SetPhase(Phase phase) {
  if (phase_ == phase) return;
  if (phase_ == Phase::kWaiting) metrics_->waiting().Decrement();
  if (phase == Phase::kWaiting) metrics_->waiting().Increment();
  phase_ = phase;
}

// ---- finding a worker ----

v1::TokenRequest TokenSource::NextRequest() const {
  v1::TokenRequest request = request_;
  request.set_request_id(absl::StrCat(worker_request_id_, ".", attempts_));
  if (pending_budget_.has_value()) {
    request.mutable_thinking()->set_budget(*pending_budget_);
    if (request.has_thinking_state()) {
      const int64_t used = request.thinking_state().used();
      request.mutable_thinking_state()->set_budget(
          *pending_budget_ < 0 ? -1 : std::max(*pending_budget_, used));
    }
  }
  if (pending_finish_) {
    v1::ThinkingState* state = request.mutable_thinking_state();
    state->set_finish_requested(true);
    if (!request_.has_thinking_state()) {  // where the automaton would stand at the start
      state->set_budget(request.thinking().budget());
      if (request.thinking().starts_inside()) {
        state->set_phase(v1::ThinkingState::FORCING);
        state->set_ended_by(v1::THINKING_END_CLIENT);
      }
    }
  }
  return request;
}

void TokenSource::NextWorker() {
  if (events_ == 0) wanted_.fingerprint.clear();
  std::unique_ptr<WorkerLease> lease = pool_->Acquire(wanted_);
  if (lease == nullptr) {
    if (!refusal_.ok() && !accepted_) return End(refusal_);
    return WaitForWorker();
  }
  ++attempts_;
  if (std::exchange(moving_, false)) {
    ++failovers_;
    metrics_->CountFailover();
    LOG_INFO("request {} moves to worker {} after {} tokens", request_.request_id(),
             lease->worker(), request_.generated_ids_size());
  }
  wanted_.fingerprint = lease->fingerprint();
  worker_ = lease->worker();
  SetPhase(Phase::kStreaming);
  stream_ = WorkerStream::Start(std::move(lease), NextRequest(), deadline_, traceparent_,
                                shared_from_this());
  if (wants_read_) stream_->Read();
}

void TokenSource::WaitForWorker() {
  const absl::Time now = absl::Now();
  if (give_up_ == absl::InfinitePast()) {
    give_up_ = now + (accepted_ ? options_.failover_wait : options_.first_worker_wait);
  }
  if (now >= deadline_) {
    return End(absl::DeadlineExceededError("the deadline passed while no worker was ready"));
  }
  if (now >= give_up_) {
    return End(refusal_.ok() ? errors::NoWorker(pool_->num_workers()) : refusal_);
  }
  SetPhase(Phase::kWaiting);
  absl::Time until = std::min(deadline_, give_up_);
  if (!refusal_.ok()) until = std::min(until, now + options_.full_wait);
  wait_ = pool_->Wait(wanted_, until, [self = shared_from_this()] { self->OnWaited(); });
}

void TokenSource::OnWaited() {
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ != Phase::kWaiting) return;
    wait_.reset();
    wanted_.not_these.clear();  // those that were full may not be any more
    NextWorker();
  }
  DeliverEnd();
}

// ---- one worker's stream ----

void TokenSource::Remember(const v1::TokenEvent& event) {
  ++events_;
  request_.mutable_generated_ids()->MergeFrom(event.ids());
  if (event.prompt_logprobs_size() > 0) request_.set_prompt_logprobs(false);
  if (!event.has_thinking()) return;
  const v1::ThinkingState& state = event.thinking();
  *request_.mutable_thinking_state() = state;
  if (state.finish_requested()) pending_finish_ = false;
  if (pending_budget_.has_value() && state.budget() == *pending_budget_) pending_budget_.reset();
}

bool TokenSource::Accept() {
  refusal_ = absl::OkStatus();
  wanted_.not_these.clear();
  give_up_ = absl::InfinitePast();
  return !std::exchange(accepted_, true);
}

void TokenSource::OnStreamAccepted(WorkerStream* stream) {
  {
    absl::MutexLock lock(&mutex_);
    if (stream != stream_.get() || closed_ || !Accept()) return;
  }
  if (const std::shared_ptr<Listener> listener = listener_.lock()) listener->OnAccepted();
}

void TokenSource::OnStreamEvent(WorkerStream* stream, v1::TokenEvent event) {
  const std::shared_ptr<Listener> listener = listener_.lock();
  {
    absl::MutexLock lock(&mutex_);
    if (stream != stream_.get()) return;
    wants_read_ = false;
    Accept();
    Remember(event);
    // The request left the queue once, whatever queue it passes again.
    if (started_) {
      event.clear_started();
      event.clear_cached_prompt_tokens();
    }
    started_ = started_ || event.started();
    if (event.finish_reason() != v1::FINISH_REASON_NONE) {
      stream_->lease().ReportSuccess();
      stream_->Drain();
      stream_ = nullptr;
      SetPhase(Phase::kEnded);
      closed_ = true;
    }
  }
  if (listener != nullptr) listener->OnTokens(std::move(event));
}

void TokenSource::OnStreamEnd(WorkerStream* stream, absl::Status status) {
  {
    absl::MutexLock lock(&mutex_);
    if (stream != stream_.get()) return;
    stream_ = nullptr;
    switch (Classify(status)) {
      case StreamEnd::kRefused:
        HandleRefusal(stream->lease().worker(), std::move(status));
        break;
      case StreamEnd::kLost:
        HandleLoss(*stream, status);
        break;
      case StreamEnd::kAnswered:
        End(std::move(status));
        break;
    }
  }
  DeliverEnd();
}

void TokenSource::HandleRefusal(int worker, absl::Status status) {
  refusal_ = std::move(status);
  wanted_.not_these.insert(worker);
  NextWorker();
}

void TokenSource::HandleLoss(WorkerStream& stream, const absl::Status& status) {
  stream.lease().ReportFailure(status.ok() ? absl::UnavailableError("ended before it was finished")
                                           : status);
  moving_ = true;
  if (++losses_ >= limits::kMaxWorkerAttempts) {
    return End(absl::UnavailableError(absl::StrCat(
        "gave up after ", losses_, " workers were lost; the last one: ", status.ToString())));
  }
  NextWorker();
}

void TokenSource::End(absl::Status status) {
  SetPhase(Phase::kEnded);
  end_ = std::move(status);
}

void TokenSource::DeliverEnd() {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ != Phase::kEnded || !wants_read_ || closed_) return;
    closed_ = true;
    status = std::exchange(end_, absl::OkStatus());
  }
  const std::shared_ptr<Listener> listener = listener_.lock();
  if (listener != nullptr) listener->OnEnd(std::move(status));
}

// ---- control ----

struct TokenSource::ControlCall {
  v1::WorkerControlRequest request;
  v1::WorkerControlResponse response;
  std::unique_ptr<grpc::ClientContext> context;
  std::shared_ptr<WorkerStream> stream;  // the attempt that is told
  absl::Time give_up;
  Done done;
};

void TokenSource::Control(const v1::WorkerControlRequest& action, Done done) {
  auto call = std::make_shared<ControlCall>();
  call->request = action;
  call->give_up = absl::Now() + options_.control_deadline;
  call->done = std::move(done);
  absl::Status answer;
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ == Phase::kEnded) {
      answer = absl::NotFoundError("the request has finished");
    } else {
      if (action.action_case() == v1::WorkerControlRequest::kFinishThinking) {
        pending_finish_ = true;
      } else {
        pending_budget_ = action.set_thinking_budget();
      }
      call->stream = stream_;  // null: the next attempt carries it
    }
  }
  if (call->stream == nullptr) return call->done(answer);
  SendControl(std::move(call));
}

void TokenSource::SendControl(std::shared_ptr<ControlCall> call) {
  call->context = std::make_unique<grpc::ClientContext>();
  call->context->set_deadline(absl::ToChronoTime(call->give_up));
  call->request.set_request_id(call->stream->request_id());
  call->stream->lease().stub().async()->Control(
      call->context.get(), &call->request, &call->response,
      [self = shared_from_this(), call](const grpc::Status& status) {
        self->OnControlAnswer(call, FromGrpcStatus(status));
      });
}

void TokenSource::OnControlAnswer(std::shared_ptr<ControlCall> call, absl::Status status) {
  if (status.ok() || absl::IsInvalidArgument(status)) return call->done(status);
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ == Phase::kEnded) {
      status = absl::NotFoundError("the request has finished");
    } else if (stream_ != call->stream) {
      status = absl::OkStatus();  // the attempt that followed carried it
    } else if (const absl::Time retry = absl::Now() + options_.control_retry;
               retry < call->give_up) {
      // This call can overtake the one that brings the request, and a worker that is being lost
      // may not be known as lost yet.
      pool_->timers().RunAt(retry, [self = shared_from_this(), call] { self->SendControl(call); });
      return;
    }
  }
  call->done(status);
}

}  // namespace conclave
