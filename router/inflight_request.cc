#include "router/inflight_request.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/trace_context.h"

namespace conclave {
namespace {

// Why we failed. What refuses a value may quote what the client wrote, and stays at debug.
std::string ReasonToLog(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
      return std::string(status.message());
    default:
      return "";
  }
}

}  // namespace

InflightRequest::InflightRequest(Info info, std::unique_ptr<RequestEvents> events,
                                 RouterMetrics* metrics)
    : info_(std::move(info)), metrics_(metrics), events_(std::move(events)) {}

InflightRequest::~InflightRequest() {
  if (source_ != nullptr) source_->Cancel();
}

void InflightRequest::Admitted(std::shared_ptr<TokenSource> source,
                               std::unique_ptr<Admission::Ticket> ticket,
                               absl::AnyInvocable<void()> forget, TurnDone turn_done) {
  source_ = std::move(source);
  absl::MutexLock lock(&mutex_);
  ticket_ = std::move(ticket);
  forget_ = std::move(forget);
  turn_done_ = std::move(turn_done);
}

void InflightRequest::Begin(PreparedRequest prepared) {
  v1::TokenRequest tokens = prepared.tokens;
  tokens.set_request_id(info_.id);
  absl::AnyInvocable<void()> step;
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) return;
    begun_ = true;
    thinking_ = prepared.thinking;
    if (turn_done_ == nullptr) prepared.conversation.reset();
    prepared_ = std::move(prepared);
    step = NextStep();
  }
  source_->Start(std::move(tokens), info_.deadline, info_.traceparent);
  if (step != nullptr) step();
}

void InflightRequest::Start() {
  if (!prepared_.has_value()) return;
  v1::Started started;
  started.set_request_id(info_.id);
  started.set_model(info_.model);
  *started.mutable_thinking() = prepared_->thinking;
  started.set_seed(prepared_->tokens.sampling().seed());
  started.set_prompt_tokens(prepared_->tokens.prompt_ids_size());
  events_->Start(*prepared_, started);
  conversation_ = std::move(prepared_->conversation);
  num_prompt_ = prepared_->tokens.prompt_ids_size();
  prepared_.reset();
}

void InflightRequest::OnAccepted() {
  absl::AnyInvocable<void()> step;
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) return;
    Start();
    step = NextStep();
  }
  if (step != nullptr) step();
}

void InflightRequest::Fail(absl::Status status) {
  absl::AnyInvocable<void()> step;
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) return;
    EndWith(std::move(status));
    step = NextStep();
  }
  if (step != nullptr) step();
}

void InflightRequest::Next() {
  const std::shared_ptr<InflightRequest> self = shared_from_this();  // OnEnd may drop the last one
  absl::AnyInvocable<void()> step;
  {
    absl::MutexLock lock(&mutex_);
    wanted_ = true;
    step = NextStep();
  }
  if (step != nullptr) step();
}

void InflightRequest::Cancel() {
  const std::shared_ptr<InflightRequest> self = shared_from_this();
  absl::AnyInvocable<void()> step;
  {
    absl::MutexLock lock(&mutex_);
    events_->DropEvents();
    if (!ended_) {
      // gRPC cancels a call whose deadline passes: the outcome is the deadline's.
      const bool late = absl::Now() >= info_.deadline - limits::kDeadlineSkew;
      EndWith(late ? absl::DeadlineExceededError("the deadline passed")
                   : absl::CancelledError("the client is gone"));
    }
    step = NextStep();
  }
  if (source_ != nullptr) source_->Cancel();
  if (step != nullptr) step();
}

absl::AnyInvocable<void()> InflightRequest::NextStep() {
  if (!wanted_ || told_) return nullptr;
  if (events_->HasEvents()) {
    wanted_ = false;
    return events_->TakeEvents();
  }
  if (ended_) {
    wanted_ = false;
    told_ = true;
    ticket_ = nullptr;
    return events_->TakeEnd(status_);
  }
  if (!begun_ || reading_) return nullptr;
  reading_ = true;
  return [source = source_] { source->Read(); };
}

void InflightRequest::OnTokens(v1::TokenEvent event) {
  absl::AnyInvocable<void()> step;
  bool stopped = false;
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) return;
    reading_ = false;
    Start();
    const bool had_answer = events_->any_answer();
    stopped = events_->Push(event);
    ObserveTokens(event, !had_answer && events_->any_answer());
    if (stopped || event.finish_reason() == v1::FINISH_REASON_STOP) {
      Finish(v1::CHAT_FINISH_REASON_STOP);
    } else if (event.finish_reason() == v1::FINISH_REASON_LENGTH) {
      Finish(v1::CHAT_FINISH_REASON_LENGTH);
    }
    step = NextStep();
  }
  if (stopped) source_->Cancel();
  if (step != nullptr) step();
}

void InflightRequest::ObserveTokens(const v1::TokenEvent& event, bool first_answer) {
  if (event.ids_size() == 0) return;
  const absl::Time now = absl::Now();
  if (last_token_ == absl::InfinitePast()) {
    metrics_->ObserveFirstToken(now - info_.arrival);
  } else {
    metrics_->ObserveInterToken(now - last_token_);
  }
  last_token_ = now;
  if (first_answer) metrics_->ObserveFirstAnswerToken(thinking_, now - info_.arrival);
}

void InflightRequest::Finish(v1::ChatFinishReason reason) {
  const v1::Finished finished = events_->Finish(reason, source_->failovers());
  metrics_->CountFinished(finished);
  // Not after a tool call: inside a turn thinking stays, so that its prompt goes on by itself.
  if (finished.reason() == v1::CHAT_FINISH_REASON_STOP ||
      finished.reason() == v1::CHAT_FINISH_REASON_LENGTH) {
    TellTurn();
  }
  EndWith(absl::OkStatus());
}

void InflightRequest::TellTurn() {
  if (!conversation_.has_value()) return;
  FinishedTurn turn;
  turn.conversation = *std::move(conversation_);
  turn.answer = events_->TakeAnswer();
  if (turn.answer.empty()) return;
  turn.computed_ids = source_->tokens();
  turn.num_prompt = num_prompt_;
  turn.worker = source_->worker();
  std::exchange(turn_done_, nullptr)(std::move(turn));
}

void InflightRequest::EndWith(absl::Status status) {
  ended_ = true;
  status_ = std::move(status);
  metrics_->CountRequest(info_.method, status_.code());
  if (forget_ != nullptr) std::exchange(forget_, nullptr)();
  LogEvent(
      "request finished",
      {{"request_id", info_.id},
       {"trace_id", TraceId(info_.traceparent)},
       {"method", info_.method},
       {"outcome", OutcomeLabel(status_.code())},
       {"reason", ReasonToLog(status_)},
       {"seconds", absl::StrFormat("%.3f", absl::ToDoubleSeconds(absl::Now() - info_.arrival))}});
  LOG_DEBUG("{} ended with {}", info_.id, status_.ToString());
}

absl::Status InflightRequest::CancelByControl() {
  const std::shared_ptr<InflightRequest> self = shared_from_this();
  absl::AnyInvocable<void()> step;
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) return absl::NotFoundError("the request has finished");
    if (begun_) {
      Start();
      Finish(v1::CHAT_FINISH_REASON_CANCELLED);
    } else {
      EndWith(absl::CancelledError("cancelled by Control before it began"));
    }
    step = NextStep();
  }
  source_->Cancel();
  if (step != nullptr) step();
  return absl::OkStatus();
}

void InflightRequest::Control(const v1::ControlRequest& request, TokenSource::Done done) {
  v1::WorkerControlRequest action;
  switch (request.action_case()) {
    case v1::ControlRequest::kCancel:
      return done(CancelByControl());
    case v1::ControlRequest::kFinishThinking:
      action.set_finish_thinking(true);
      break;
    case v1::ControlRequest::kSetThinkingBudget: {
      const int64_t asked = request.set_thinking_budget();
      const int64_t ceiling = info_.budget_ceiling;
      action.set_set_thinking_budget(ceiling >= 0 && (asked < 0 || asked > ceiling) ? ceiling
                                                                                    : asked);
      break;
    }
    case v1::ControlRequest::ACTION_NOT_SET:
      return done(absl::InvalidArgumentError("action is not set"));
  }
  source_->Control(action, std::move(done));
}

}  // namespace conclave
