#include "router/inference_service.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/strip.h"
#include "common/limits.h"
#include "common/trace_context.h"
#include "rpc/grpc_status.h"

namespace conclave {
namespace {

// A decode step takes tens of milliseconds, a request seconds.
constexpr absl::Duration kRetryAfter = absl::Seconds(1);

grpc::Status Encode(grpc::CallbackServerContext& context, const absl::Status& status) {
  if (absl::IsResourceExhausted(status)) SetRetryAfter(context, kRetryAfter);
  return ToGrpcStatus(status);
}

// Writes one request's events to its client. Deletes itself when gRPC is done with it.
template <typename Event>
class EventWriter final : public grpc::ServerWriteReactor<Event>, public RequestObserver<Event> {
 public:
  explicit EventWriter(grpc::CallbackServerContext* context) : context_(context) {}

  void Begin(std::shared_ptr<RequestHandle> handle) {
    handle_ = std::move(handle);
    handle_->Next();
  }

 private:
  void OnEvents(std::vector<Event> events) override {
    events_ = std::move(events);
    next_ = 0;
    WriteNext();
  }
  void OnEnd(absl::Status status) override { this->Finish(Encode(*context_, status)); }

  void WriteNext() { this->StartWrite(&events_[next_++]); }
  void OnWriteDone(bool ok) override {
    if (ok && next_ < events_.size()) return WriteNext();
    if (!ok) handle_->Cancel();
    handle_->Next();
  }
  void OnCancel() override { handle_->Cancel(); }
  void OnDone() override { delete this; }

  grpc::CallbackServerContext* const context_;
  std::shared_ptr<RequestHandle> handle_;
  std::vector<Event> events_;
  size_t next_ = 0;
};

// The API key as HTTP clients send it too: "authorization: Bearer KEY".
Caller CallerOf(const grpc::CallbackServerContext& context) {
  Caller caller;
  caller.deadline = absl::FromChrono(context.deadline());
  const auto metadata = [&context](const char* name) {
    const auto found = context.client_metadata().find(name);
    return found == context.client_metadata().end()
               ? absl::string_view()
               : absl::string_view(found->second.data(), found->second.size());
  };
  absl::string_view key = metadata("authorization");
  if (absl::ConsumePrefix(&key, "Bearer ")) caller.api_key = std::string(key);
  caller.traceparent = std::string(metadata(kTraceparent));
  return caller;
}

}  // namespace

grpc::ServerWriteReactor<v1::ChatEvent>* InferenceService::Chat(
    grpc::CallbackServerContext* context, const v1::ChatRequest* request) {
  auto* writer = new EventWriter<v1::ChatEvent>(context);
  writer->Begin(engine_->Chat(*request, CallerOf(*context), writer));
  return writer;
}

grpc::ServerWriteReactor<v1::GenerateEvent>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  auto* writer = new EventWriter<v1::GenerateEvent>(context);
  writer->Begin(engine_->Generate(*request, CallerOf(*context), writer));
  return writer;
}

void InferenceService::FinishUnary(grpc::CallbackServerContext* context,
                                   grpc::ServerUnaryReactor* reactor, absl::string_view method,
                                   const absl::Status& status) {
  metrics_->CountRequest(method, status.code());
  reactor->Finish(Encode(*context, status));
}

grpc::ServerUnaryReactor* InferenceService::Control(grpc::CallbackServerContext* context,
                                                    const v1::ControlRequest* request,
                                                    v1::ControlResponse* /*response*/) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  engine_->Control(*request, [this, context, reactor](absl::Status status) {
    FinishUnary(context, reactor, "Control", status);
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto act = [this, context, request, response, reactor] {
    absl::StatusOr<v1::TokenizeResponse> tokenized = engine_->Tokenize(*request);
    const absl::Status status = tokenized.status();
    if (status.ok()) *response = *std::move(tokenized);
    FinishUnary(context, reactor, "Tokenize", status);
  };
  if (request->text().size() <= limits::kMaxInlinePromptBytes) {
    act();
  } else if (absl::Status queued = engine_->RunLong(act); !queued.ok()) {
    FinishUnary(context, reactor, "Tokenize", queued);
  }
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::StatusOr<v1::DetokenizeResponse> text = engine_->Detokenize(*request);
  const absl::Status status = text.status();
  if (status.ok()) *response = *std::move(text);
  FinishUnary(context, reactor, "Detokenize", status);
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GetModel(grpc::CallbackServerContext* context,
                                                     const v1::GetModelRequest* /*request*/,
                                                     v1::GetModelResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  *response = engine_->GetModel();
  FinishUnary(context, reactor, "GetModel", absl::OkStatus());
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GetCluster(grpc::CallbackServerContext* context,
                                                       const v1::GetClusterRequest* /*request*/,
                                                       v1::ClusterStatus* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  *response = engine_->GetCluster();
  FinishUnary(context, reactor, "GetCluster", absl::OkStatus());
  return reactor;
}

}  // namespace conclave
