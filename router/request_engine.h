#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/limits.h"
#include "proto/conclave/v1/inference.pb.h"
#include "router/admission.h"
#include "router/budget_policy.h"
#include "router/inflight_request.h"
#include "router/prefill_ahead.h"
#include "router/request_observer.h"
#include "router/router_metrics.h"
#include "router/served_model.h"
#include "router/task_runner.h"
#include "router/token_source.h"
#include "router/worker_pool.h"

namespace conclave {

struct RequestEngineOptions {
  int max_inflight = limits::kDefaultMaxInflightRequests;
  int prompt_threads = 2;  // for prompts past kMaxInlinePromptBytes
  TokenSourceOptions tokens;
  BudgetPolicyOptions budgets;
  bool prefill_ahead = true;  // of conversations' next prompts, by idle workers
};

// Who asks, as far as it matters to the request.
struct Caller {
  absl::Time deadline = absl::InfiniteFuture();
  std::string api_key;      // empty: none given
  std::string traceparent;  // as it came; empty: none given
};

// All that the router does with a request, whichever door it came through: admission, prompt,
// worker, events, control. Thread-safe; nothing blocks but the destructor.
class RequestEngine {
 public:
  // All borrowed; all outlive the engine, and the engine outlives its requests.
  RequestEngine(const ServedModel* model, WorkerPool* pool, RouterMetrics* metrics,
                RequestEngineOptions options);
  ~RequestEngine();

  // Begins a request; its events, or why it was refused, come to `observer` as the handle's Next()
  // asks for them, and until its OnEnd the observer must live. A deadline later than
  // kDefaultRequestDeadline from now is cut to that; a thinking budget may be lowered
  // (BudgetPolicy). OnEnd gets: INVALID_ARGUMENT, NOT_FOUND (model), ALREADY_EXISTS (request_id in
  // flight), RESOURCE_EXHAUSTED (the router or every worker is full), UNAVAILABLE (draining; no
  // worker), DEADLINE_EXCEEDED, CANCELLED (by the handle).
  std::shared_ptr<RequestHandle> Chat(const v1::ChatRequest& request, const Caller& caller,
                                      RequestObserver<v1::ChatEvent>* observer);
  std::shared_ptr<RequestHandle> Generate(const v1::GenerateRequest& request, const Caller& caller,
                                          RequestObserver<v1::GenerateEvent>* observer);

  // Acts on a request in flight; `done` is called once, maybe before this returns. NOT_FOUND once
  // it has finished or if there never was one; INVALID_ARGUMENT (budget, no action).
  void Control(const v1::ControlRequest& request, TokenSource::Done done);

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) const;
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request) const;
  v1::GetModelResponse GetModel() const;
  v1::ClusterStatus GetCluster() const;

  // New requests get UNAVAILABLE from now on; those in flight go on and can be controlled.
  void BeginDrain() { admission_.BeginDrain(); }
  // Blocks until nothing is in flight: true, or the deadline passes: false.
  bool WaitIdle(absl::Time deadline) { return admission_.WaitIdle(deadline); }
  int inflight() const { return admission_.inflight(); }

  // Runs `task` on the threads for long work (texts past kMaxInlinePromptBytes);
  // RESOURCE_EXHAUSTED when too much is queued.
  absl::Status RunLong(TaskRunner::Task task);

 private:
  template <typename Request, typename Events>
  std::shared_ptr<RequestHandle> BeginRequest(const Request& request, const char* method,
                                              const Caller& caller, std::unique_ptr<Events> events);
  // Then the request begins, or fails.
  void Prepared(InflightRequest& inflight, const std::string& api_key,
                absl::StatusOr<PreparedRequest> prepared);
  // Gives the request its place and its id, or says why not.
  absl::Status Admit(const std::string& id, const std::shared_ptr<InflightRequest>& request);
  InflightRequest::TurnDone MakeTurnDone();
  void Forget(const std::string& id);
  int64_t max_context() const;

  const ServedModel* const model_;
  WorkerPool* const pool_;
  RouterMetrics* const metrics_;
  const RequestEngineOptions options_;
  const absl::Time start_time_;
  Admission admission_;
  BudgetPolicy budgets_;
  absl::Mutex mutex_;
  absl::flat_hash_map<std::string, std::weak_ptr<InflightRequest>> requests_
      ABSL_GUARDED_BY(mutex_);
  PrefillAhead prefill_ahead_;
  TaskRunner long_tasks_;  // last: its threads use all of the above
};

}  // namespace conclave
