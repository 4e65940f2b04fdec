#include "router/request_engine.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "common/trace_context.h"
#include "router/chat_events.h"
#include "router/generate_events.h"
#include "router/prompt_builder.h"

namespace conclave {
namespace {

std::string MakeRequestId() {
  return absl::StrCat("req-", absl::Hex(absl::Uniform<uint64_t>(absl::BitGen()), absl::kZeroPad16));
}

absl::StatusOr<PreparedRequest> Prepare(const ServedModel& model, const v1::ChatRequest& request,
                                        int64_t max_context) {
  return PrepareChat(model, request, max_context);
}
absl::StatusOr<PreparedRequest> Prepare(const ServedModel& model,
                                        const v1::GenerateRequest& request, int64_t max_context) {
  return PrepareGenerate(model, request, max_context);
}

}  // namespace

RequestEngine::RequestEngine(const ServedModel* model, WorkerPool* pool, RouterMetrics* metrics,
                             RequestEngineOptions options)
    : model_(model),
      pool_(pool),
      metrics_(metrics),
      options_(std::move(options)),
      start_time_(absl::Now()),
      admission_(options_.max_inflight, metrics),
      budgets_(options_.budgets, metrics),
      prefill_ahead_(model, pool, metrics),
      long_tasks_(options_.prompt_threads, options_.max_inflight) {
  pool_->OnQueue([this](double waiting_per_worker) {
    budgets_.ObserveQueue(waiting_per_worker, absl::Now());
  });
}

RequestEngine::~RequestEngine() { pool_->OnQueue(nullptr); }

int64_t RequestEngine::max_context() const {
  const int64_t of_workers = pool_->max_context();
  const int64_t of_model = model_->config.MaxContext();
  return of_workers > 0 ? std::min(of_workers, of_model) : of_model;
}

// ---- requests ----

std::shared_ptr<RequestHandle> RequestEngine::Chat(const v1::ChatRequest& request,
                                                   const Caller& caller,
                                                   RequestObserver<v1::ChatEvent>* observer) {
  return BeginRequest(request, "Chat", caller, std::make_unique<ChatEvents>(*model_, observer));
}

std::shared_ptr<RequestHandle> RequestEngine::Generate(
    const v1::GenerateRequest& request, const Caller& caller,
    RequestObserver<v1::GenerateEvent>* observer) {
  return BeginRequest(request, "Generate", caller,
                      std::make_unique<GenerateEvents>(*model_, observer));
}

template <typename Request, typename Events>
std::shared_ptr<RequestHandle> RequestEngine::BeginRequest(const Request& request,
                                                           const char* method, const Caller& caller,
                                                           std::unique_ptr<Events> events) {
  InflightRequest::Info info;
  info.id = request.request_id().empty() ? MakeRequestId() : request.request_id();
  info.method = method;
  info.model = model_->name;
  info.arrival = absl::Now();
  info.deadline = std::min(caller.deadline, info.arrival + limits::kDefaultRequestDeadline);
  info.traceparent = ValidTraceparent(caller.traceparent);
  info.budget_ceiling = budgets_.CeilingOf(caller.api_key);
  auto inflight = std::make_shared<InflightRequest>(info, std::move(events), metrics_);
  if (absl::Status admitted = Admit(info.id, inflight); !admitted.ok()) {
    inflight->Fail(std::move(admitted));
    return inflight;
  }
  if (TextBytes(request) <= limits::kMaxInlinePromptBytes ||
      TextBytes(request) > limits::kMaxPromptBytes) {  // refused before it is tokenized
    Prepared(*inflight, caller.api_key, Prepare(*model_, request, max_context()));
    return inflight;
  }
  absl::Status queued = RunLong([this, inflight, copy = request, api_key = caller.api_key] {
    Prepared(*inflight, api_key, Prepare(*model_, copy, max_context()));
  });
  if (!queued.ok()) inflight->Fail(std::move(queued));
  return inflight;
}

void RequestEngine::Prepared(InflightRequest& inflight, const std::string& api_key,
                             absl::StatusOr<PreparedRequest> prepared) {
  if (!prepared.ok()) return inflight.Fail(prepared.status());
  budgets_.Apply(api_key, &*prepared);
  inflight.Begin(*std::move(prepared));
}

absl::Status RequestEngine::RunLong(TaskRunner::Task task) {
  if (long_tasks_.TryRun(std::move(task))) return absl::OkStatus();
  return errors::Overloaded("prompt queue", options_.max_inflight);
}

absl::Status RequestEngine::Admit(const std::string& id,
                                  const std::shared_ptr<InflightRequest>& request) {
  RETURN_IF_ERROR(ValidateRequestId(id));
  ASSIGN_OR_RETURN(std::unique_ptr<Admission::Ticket> ticket, admission_.Admit());
  {
    absl::MutexLock lock(&mutex_);
    if (!requests_.try_emplace(id).second) {
      return absl::AlreadyExistsError(
          absl::StrCat("request_id is \"", id, "\", want one that is not in flight"));
    }
  }
  // Not under the lock: a request's own lock comes before it, in Forget.
  request->Admitted(
      std::make_shared<TokenSource>(pool_, metrics_, options_.tokens, std::weak_ptr(request)),
      std::move(ticket), [this, id] { Forget(id); }, MakeTurnDone());
  absl::MutexLock lock(&mutex_);
  requests_[id] = request;
  return absl::OkStatus();
}

InflightRequest::TurnDone RequestEngine::MakeTurnDone() {
  if (!options_.prefill_ahead) return nullptr;
  return [this](FinishedTurn turn) {
    // Dropped if there is too much to do for requests that are waited for.
    long_tasks_.TryRun([this, turn = std::move(turn)] { prefill_ahead_.Start(turn); });
  };
}

void RequestEngine::Forget(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  requests_.erase(id);
}

void RequestEngine::Control(const v1::ControlRequest& request, TokenSource::Done done) {
  if (request.action_case() == v1::ControlRequest::kSetThinkingBudget &&
      request.set_thinking_budget() < -1) {
    return done(errors::OutOfRange("set_thinking_budget", request.set_thinking_budget(),
                                   "-1 (no limit) or more"));
  }
  std::shared_ptr<InflightRequest> inflight;
  {
    absl::MutexLock lock(&mutex_);
    const auto entry = requests_.find(request.request_id());
    if (entry != requests_.end()) inflight = entry->second.lock();
  }
  if (inflight == nullptr) {
    return done(absl::NotFoundError(
        absl::StrCat("no request \"", request.request_id().substr(0, limits::kMaxRequestIdBytes),
                     "\" is in flight")));
  }
  inflight->Control(request, std::move(done));
}

// ---- the rest ----

absl::StatusOr<v1::TokenizeResponse> RequestEngine::Tokenize(
    const v1::TokenizeRequest& request) const {
  if (request.text().size() > limits::kMaxPromptBytes) {
    return errors::OutOfRange("size of text in bytes", request.text().size(),
                              absl::StrCat("at most ", limits::kMaxPromptBytes));
  }
  ASSIGN_OR_RETURN(
      const std::vector<uint32_t> ids,
      model_->tokenizer->Encode(request.text(),
                                request.plain() ? AddedTokens::kPlain : AddedTokens::kMatch));
  v1::TokenizeResponse response;
  response.mutable_ids()->Add(ids.begin(), ids.end());
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> RequestEngine::Detokenize(
    const v1::DetokenizeRequest& request) const {
  if (request.ids_size() > limits::kMaxDetokenizeIds) {
    return errors::OutOfRange("number of ids", request.ids_size(),
                              absl::StrCat("at most ", limits::kMaxDetokenizeIds));
  }
  const size_t num_ids = model_->vocabulary().size();
  for (uint32_t id : request.ids()) {
    if (id >= num_ids) return errors::OutOfRange("id", id, absl::StrCat("below ", num_ids));
  }
  v1::DetokenizeResponse response;
  response.set_text(
      model_->tokenizer->Decode(absl::MakeConstSpan(request.ids().data(), request.ids_size()),
                                request.skip_special_tokens()));
  return response;
}

v1::GetModelResponse RequestEngine::GetModel() const {
  v1::GetModelResponse response;
  *response.mutable_model() = model_->Info();
  response.mutable_model()->set_fingerprint(pool_->fingerprint());
  response.mutable_model()->set_weight_dtype(pool_->weight_dtype());
  response.set_max_context(static_cast<uint32_t>(max_context()));
  response.set_chat_template(std::string(ChatTemplateName(model_->template_kind)));
  const ThinkingDecision decision =
      ResolveThinkingMode(model_->template_kind, ChatPrompt{}, model_->default_mode);
  response.set_default_mode(ToProto(decision.mode));
  return response;
}

v1::ClusterStatus RequestEngine::GetCluster() const {
  v1::ClusterStatus status;
  v1::ClusterStatus::Router* router = status.mutable_router();
  router->set_inflight(static_cast<uint32_t>(admission_.inflight()));
  router->set_waiting(static_cast<uint32_t>(metrics_->waiting().Value()));
  router->set_draining(admission_.draining());
  router->set_uptime_seconds(absl::ToDoubleSeconds(absl::Now() - start_time_));
  router->set_thinking_tokens(metrics_->num_thinking_tokens());
  router->set_answer_tokens(metrics_->num_answer_tokens());
  for (v1::ClusterStatus::WorkerStatus& worker : pool_->Snapshot()) {
    *status.add_workers() = std::move(worker);
  }
  status.set_serving(pool_->AnyReady() && !admission_.draining());
  *status.mutable_model() = GetModel().model();
  return status;
}

}  // namespace conclave
