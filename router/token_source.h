#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/conclave/v1/worker.pb.h"
#include "router/router_metrics.h"
#include "router/worker_pool.h"
#include "router/worker_stream.h"

namespace conclave {

struct TokenSourceOptions {
  // How long a request waits while no worker can take it: one that no worker has seen yet, and one
  // that was accepted and lost its worker.
  absl::Duration first_worker_wait = absl::Seconds(2);
  absl::Duration failover_wait = absl::Seconds(30);
  // Before workers that all were full are asked again for an accepted request.
  absl::Duration full_wait = absl::Milliseconds(200);
  absl::Duration control_deadline = limits::kControlDeadline;
  absl::Duration control_retry = absl::Milliseconds(10);
};

// The tokens of one request, from whichever worker: when a worker is lost, the prompt and what was
// generated go to another, and the events continue with no token lost, doubled or changed.
//
// Pull-driven: each Read() is answered by exactly one OnTokens or OnEnd. Nothing is called under a
// lock of ours. Thread-safe.
class TokenSource final : public WorkerStream::Listener,
                          public std::enable_shared_from_this<TokenSource> {
 public:
  class Listener {
   public:
    virtual ~Listener() = default;
    // A worker took the request: from here on a refusal is no longer possible. At most once, also
    // without a Read(), maybe beside the first OnTokens, which says the same.
    virtual void OnAccepted() = 0;
    // The last one has a finish_reason; then no Read() is needed any more.
    virtual void OnTokens(v1::TokenEvent event) = 0;
    // INVALID_ARGUMENT, DEADLINE_EXCEEDED, ... of the worker; RESOURCE_EXHAUSTED if every worker
    // is full; UNAVAILABLE if none is left or kMaxWorkerAttempts were lost. Never OK.
    virtual void OnEnd(absl::Status status) = 0;
  };
  using Done = absl::AnyInvocable<void(absl::Status)>;

  // `pool` and `metrics` outlive this; nothing is called any more once the listener is gone.
  TokenSource(WorkerPool* pool, RouterMetrics* metrics, TokenSourceOptions options,
              std::weak_ptr<Listener> listener);

  // Once. request.request_id is the client's; workers get ids derived from it.
  // traceparent: of common/trace_context.h, or empty.
  void Start(v1::TokenRequest request, absl::Time deadline, std::string traceparent = "");
  void Read();
  // No more calls to the listener but one that is under way. Also before Start.
  void Cancel();

  // finish_thinking or set_thinking_budget, in any phase, also before Start: what no worker can be
  // told now goes along with the request to the next one. NOT_FOUND once the request has ended.
  void Control(const v1::WorkerControlRequest& action, Done done);

  uint32_t failovers() const;
  // The worker of the last stream; -1: there was none.
  int worker() const;
  // Prompt and what was generated so far.
  std::vector<uint32_t> tokens() const;

 private:
  enum class Phase { kNew, kWaiting, kStreaming, kEnded };
  struct ControlCall;

  void OnStreamAccepted(WorkerStream* stream) override;
  void OnStreamEvent(WorkerStream* stream, v1::TokenEvent event) override;
  void OnStreamEnd(WorkerStream* stream, absl::Status status) override;

  // The three ends of a stream that was not finished.
  void HandleRefusal(int worker, absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandleLoss(WorkerStream& stream, const absl::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void End(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void NextWorker() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WaitForWorker() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnWaited();
  void SetPhase(Phase phase) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::TokenRequest NextRequest() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Remember(const v1::TokenEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // True for the first acceptance.
  bool Accept() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Calls the listener if a Read() waits for what has ended.
  void DeliverEnd();
  void SendControl(std::shared_ptr<ControlCall> call);
  void OnControlAnswer(std::shared_ptr<ControlCall> call, absl::Status status);

  WorkerPool* const pool_;
  RouterMetrics* const metrics_;
  const TokenSourceOptions options_;
  const std::weak_ptr<Listener> listener_;

  mutable absl::Mutex mutex_;
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kNew;
  bool wants_read_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // the listener hears nothing more
  absl::Status end_ ABSL_GUARDED_BY(mutex_);     // in kEnded, until it is delivered

  v1::TokenRequest request_ ABSL_GUARDED_BY(mutex_);  // generated_ids grows with the events
  std::string worker_request_id_ ABSL_GUARDED_BY(mutex_);
  std::string traceparent_ ABSL_GUARDED_BY(mutex_);
  absl::Time deadline_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  bool accepted_ ABSL_GUARDED_BY(mutex_) = false;  // by any worker
  int64_t events_ ABSL_GUARDED_BY(mutex_) = 0;
  bool started_ ABSL_GUARDED_BY(mutex_) = false;  // some worker took it out of its queue
  // Asked by the client and not yet seen in a worker's state.
  bool pending_finish_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<int64_t> pending_budget_ ABSL_GUARDED_BY(mutex_);

  std::shared_ptr<WorkerStream> stream_ ABSL_GUARDED_BY(mutex_);  // in kStreaming
  WorkerPool::Wanted wanted_ ABSL_GUARDED_BY(mutex_);
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);  // of the last worker that was full
  absl::Time give_up_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();  // of this wait
  std::optional<WorkerPool::WaitId> wait_ ABSL_GUARDED_BY(mutex_);
  int attempts_ ABSL_GUARDED_BY(mutex_) = 0;  // calls made, refused ones among them
  int losses_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t failovers_ ABSL_GUARDED_BY(mutex_) = 0;
  int worker_ ABSL_GUARDED_BY(mutex_) = -1;
  bool moving_ ABSL_GUARDED_BY(mutex_) = false;  // the next call is a failover
};

}  // namespace conclave
