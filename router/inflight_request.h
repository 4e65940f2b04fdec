#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/conclave/v1/inference.pb.h"
#include "router/admission.h"
#include "router/prefill_ahead.h"
#include "router/prompt_builder.h"
#include "router/request_events.h"
#include "router/request_observer.h"
#include "router/router_metrics.h"
#include "router/token_source.h"

namespace conclave {

// One request from its admission to its end: pulls tokens from the workers, makes events of them,
// hands those to the observer at its pace, and ends exactly once. Thread-safe.
class InflightRequest final : public RequestHandle,
                              public TokenSource::Listener,
                              public std::enable_shared_from_this<InflightRequest> {
 public:
  struct Info {
    std::string id;
    const char* method;  // label of requests_total: "Chat", "Generate"
    std::string model;
    std::string traceparent;  // valid, or empty
    absl::Time arrival;
    absl::Time deadline;
    int64_t budget_ceiling;  // of thinking, for Control too; -1: none
  };
  InflightRequest(Info info, std::unique_ptr<RequestEvents> events, RouterMetrics* metrics);
  ~InflightRequest() override;

  // Called once with a turn that was answered to its end; must not block.
  using TurnDone = absl::AnyInvocable<void(FinishedTurn turn)>;

  // First, unless it is refused: from now on it can be controlled. `forget` is called once, when
  // the request has ended and its id is free again. `turn_done` may be null.
  void Admitted(std::shared_ptr<TokenSource> source, std::unique_ptr<Admission::Ticket> ticket,
                absl::AnyInvocable<void()> forget, TurnDone turn_done);
  // Then one of the two: it was tokenized, or something was wrong with it.
  void Begin(PreparedRequest prepared);
  void Fail(absl::Status status);

  void Next() override;
  void Cancel() override;

  // Thinking control goes to the workers; cancel ends the request with `finished`. NOT_FOUND once
  // it has ended.
  void Control(const v1::ControlRequest& request, TokenSource::Done done);

 private:
  void OnAccepted() override;
  void OnTokens(v1::TokenEvent event) override;
  void OnEnd(absl::Status status) override { Fail(std::move(status)); }

  // Makes the event `started`, unless that was done.
  void Start() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ObserveTokens(const v1::TokenEvent& event, bool first_answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `finished` goes out, then OK.
  void Finish(v1::ChatFinishReason reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A conversation that goes on from here is told to turn_done_.
  void TellTurn() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndWith(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CancelByControl();
  // What is to be done for the observer now: call it, or read more. Runs outside the lock.
  absl::AnyInvocable<void()> NextStep() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Info info_;
  RouterMetrics* const metrics_;
  std::shared_ptr<TokenSource> source_;  // null if refused

  absl::Mutex mutex_;
  const std::unique_ptr<RequestEvents> events_ ABSL_PT_GUARDED_BY(mutex_);
  absl::AnyInvocable<void()> forget_ ABSL_GUARDED_BY(mutex_);
  TurnDone turn_done_ ABSL_GUARDED_BY(mutex_);
  std::optional<ChatPrompt> conversation_ ABSL_GUARDED_BY(mutex_);  // from Start on, of a chat
  int64_t num_prompt_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<Admission::Ticket> ticket_ ABSL_GUARDED_BY(mutex_);
  std::optional<PreparedRequest> prepared_ ABSL_GUARDED_BY(mutex_);  // from Begin to Start
  v1::ThinkingReport thinking_ ABSL_GUARDED_BY(mutex_);              // as resolved, for labels
  bool begun_ ABSL_GUARDED_BY(mutex_) = false;
  bool wanted_ ABSL_GUARDED_BY(mutex_) = false;   // a Next() waits
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;  // a Read() waits
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool told_ ABSL_GUARDED_BY(mutex_) = false;    // OnEnd was called
  absl::Status status_ ABSL_GUARDED_BY(mutex_);  // once ended
  absl::Time last_token_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace conclave
