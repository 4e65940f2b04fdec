#include "worker/worker_service.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "common/trace_context.h"
#include "rpc/grpc_status.h"
#include "worker/token_stream.h"

namespace conclave {

WorkerService::WorkerService(v1::ModelInfo model) : model_(std::move(model)) {}

void WorkerService::SetEngine(Engine* engine, ExpertExchange* experts, bool local_experts) {
  absl::MutexLock lock(&mutex_);
  engine_ = engine;
  experts_ = experts;
  local_experts_ = local_experts;
}

absl::StatusOr<Engine*> WorkerService::LoadedEngine() {
  absl::MutexLock lock(&mutex_);
  if (draining_) return errors::Draining("worker");
  if (engine_ == nullptr) return absl::UnavailableError("the worker is loading its weights");
  return engine_;
}

absl::Status WorkerService::Ready() {
  ASSIGN_OR_RETURN(Engine* const engine, LoadedEngine());
  RETURN_IF_ERROR(engine->health());
  ExpertExchange* experts = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    experts = experts_;
  }
  return experts == nullptr ? absl::OkStatus() : experts->Ready();
}

void WorkerService::StartDraining() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  if (engine_ != nullptr) engine_->StartDraining();
}

grpc::ServerUnaryReactor* WorkerService::Describe(grpc::CallbackServerContext* context,
                                                  const v1::DescribeWorkerRequest*,
                                                  v1::WorkerDescription* response) {
  const absl::Status ready = Ready();
  *response->mutable_model() = model_;
  response->set_ready(ready.ok());
  response->set_reason(std::string(ready.message()));
  Engine* engine = nullptr;
  ExpertExchange* experts = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    engine = engine_;
    experts = experts_;
    response->set_local_experts(local_experts_);
  }
  if (engine != nullptr) {
    const EngineLoad load = engine->Load();
    response->set_running(static_cast<uint32_t>(load.running));
    response->set_waiting(static_cast<uint32_t>(load.waiting));
    response->set_kv_blocks_used(static_cast<uint64_t>(load.kv_blocks_used));
    response->set_kv_blocks_total(static_cast<uint64_t>(engine->options().num_kv_blocks));
    response->set_max_context(static_cast<uint32_t>(engine->options().limits.max_context));
    response->set_prefix_cache(engine->options().prefix_cache);
    response->set_tokens_per_second(load.tokens_per_second);
  }
  if (experts != nullptr) {
    for (v1::ShardState& shard : experts->Shards()) *response->add_shards() = std::move(shard);
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<v1::TokenEvent>* WorkerService::Generate(
    grpc::CallbackServerContext* context, const v1::TokenRequest* request) {
  const absl::StatusOr<Engine*> engine = LoadedEngine();
  v1::RequestTag tag;
  tag.set_request_id(request->request_id().substr(0, limits::kMaxRequestIdBytes));
  const auto traceparent = context->client_metadata().find(kTraceparent);
  if (traceparent != context->client_metadata().end()) {
    tag.set_traceparent(ValidTraceparent({traceparent->second.data(), traceparent->second.size()}));
  }
  auto [stream, reactor] = TokenStream::Create(tag);
  absl::Status accepted = engine.status();
  if (accepted.ok()) {
    accepted = (*engine)->Submit(*request, absl::FromChrono(context->deadline()), stream);
  }
  if (!accepted.ok()) stream->OnDone(accepted);
  stream->Open(accepted.ok());
  if (!accepted.ok()) return reactor;
  absl::MutexLock lock(&mutex_);
  if (experts_ != nullptr) experts_->Announce(tag);
  return reactor;
}

grpc::ServerUnaryReactor* WorkerService::Control(grpc::CallbackServerContext* context,
                                                 const v1::WorkerControlRequest* request,
                                                 v1::WorkerControlResponse*) {
  const auto act = [&]() -> absl::Status {
    // Draining takes no new requests, but those in flight can still be controlled.
    Engine* engine = nullptr;
    {
      absl::MutexLock lock(&mutex_);
      engine = engine_;
    }
    if (engine == nullptr) return absl::NotFoundError("the worker has no requests yet");
    switch (request->action_case()) {
      case v1::WorkerControlRequest::kFinishThinking:
        return engine->FinishThinking(request->request_id());
      case v1::WorkerControlRequest::kSetThinkingBudget:
        return engine->SetThinkingBudget(request->request_id(), request->set_thinking_budget());
      case v1::WorkerControlRequest::ACTION_NOT_SET:
        break;
    }
    return absl::InvalidArgumentError(
        "action is not set, want finish_thinking or set_thinking_budget");
  };
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(act()));
  return reactor;
}

}  // namespace conclave
