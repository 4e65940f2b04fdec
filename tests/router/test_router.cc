#include "tests/router/test_router.h"

#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/check.h"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"

namespace conclave {

TestRouterOptions::TestRouterOptions() {
  engine.prefill_ahead = false;  // workers get what the test sends and no more
  pool.poll_interval = absl::Milliseconds(5);
  pool.describe_deadline = absl::Seconds(2);
  pool.min_rest = absl::Milliseconds(5);
  pool.max_rest = absl::Milliseconds(20);
  engine.tokens.first_worker_wait = absl::Seconds(20);
  engine.tokens.failover_wait = absl::Seconds(20);
  engine.tokens.full_wait = absl::Milliseconds(5);
  engine.tokens.control_retry = absl::Milliseconds(1);
}

TestRouter::TestRouter(const std::vector<FakeWorker*>& workers, TestRouterOptions options) {
  for (FakeWorker* worker : workers) options.pool.targets.push_back(worker->target());
  router_metrics_ = std::make_unique<RouterMetrics>(&metrics_);
  pool_ = std::make_unique<WorkerPool>(options.pool, options.model->Info(), router_metrics_.get());
  engine_ = std::make_unique<RequestEngine>(options.model, pool_.get(), router_metrics_.get(),
                                            options.engine);
  service_ = std::make_unique<InferenceService>(engine_.get(), router_metrics_.get());
  ServerOptions server_options;
  server_options.listen = "127.0.0.1:0";
  server_options.services = {service_.get()};
  auto server = ServerRunner::Start(server_options);
  CHECK(server.ok()) << server.status().ToString();
  server_ = *std::move(server);
  server_->SetServing(true);
  stub_ = v1::Inference::NewStub(MakeChannel(server_->address()));
  CHECK(WaitForWorkersUp(static_cast<int>(workers.size())));
}

TestRouter::~TestRouter() { server_ = nullptr; }

bool TestRouter::WaitForWorkersUp(int count) {
  return Eventually([&] {
    int up = 0;
    for (const auto& worker : pool_->Snapshot()) up += worker.up();
    return up == count;
  });
}

double TestRouter::Metric(absl::string_view name_and_labels) const {
  const std::string text = metrics();
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!absl::ConsumePrefix(&line, absl::StrCat(name_and_labels, " "))) continue;
    double value = 0;
    CHECK(absl::SimpleAtod(line, &value)) << line;
    return value;
  }
  return 0;
}

v1::ClusterStatus TestRouter::Cluster() {
  grpc::ClientContext context;
  v1::ClusterStatus status;
  CHECK(stub_->GetCluster(&context, {}, &status).ok());
  return status;
}

bool Eventually(absl::FunctionRef<bool()> condition) {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

std::unique_ptr<ChatCall> StartChat(TestRouter& router, const v1::ChatRequest& request,
                                    absl::Duration deadline) {
  auto call = std::make_unique<ChatCall>();
  call->context.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
  call->reader = router.stub().Chat(&call->context, request);
  return call;
}

std::unique_ptr<GenerateCall> StartGenerate(TestRouter& router, const v1::GenerateRequest& request,
                                            absl::Duration deadline) {
  auto call = std::make_unique<GenerateCall>();
  call->context.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
  call->reader = router.stub().Generate(&call->context, request);
  return call;
}

namespace {

void AddKind(absl::string_view kind, Transcript* transcript) {
  const bool repeated = absl::EndsWith(kind, "delta") && !transcript->kinds.empty() &&
                        transcript->kinds.back() == kind;
  if (!repeated) transcript->kinds.emplace_back(kind);
}

void AddDelta(const v1::TextDelta& delta, std::string* text, Transcript* transcript) {
  text->append(delta.text());
  transcript->ids.insert(transcript->ids.end(), delta.ids().begin(), delta.ids().end());
  for (const v1::TokenLogprobs& logprobs : delta.logprobs()) {
    transcript->logprobs.push_back(logprobs.logprob());
  }
}

template <typename AnyCall, typename Event>
Transcript ReadAllOf(AnyCall& call) {
  Transcript transcript;
  Event event;
  while (call.Read(&event)) Add(event, &transcript);
  transcript.status = FromGrpcStatus(call.Finish());
  transcript.retry_after = RetryAfter(call.context).value_or(absl::ZeroDuration());
  return transcript;
}

}  // namespace

void Add(const v1::ChatEvent& event, Transcript* transcript) {
  switch (event.event_case()) {
    case v1::ChatEvent::kStarted:
      AddKind("started", transcript);
      transcript->started = event.started();
      break;
    case v1::ChatEvent::kThinkingDelta:
      AddKind("thinking_delta", transcript);
      AddDelta(event.thinking_delta(), &transcript->thinking, transcript);
      break;
    case v1::ChatEvent::kThinkingDone:
      AddKind("thinking_done", transcript);
      transcript->thinking_done.push_back(event.thinking_done());
      break;
    case v1::ChatEvent::kContentDelta:
      AddKind("content_delta", transcript);
      AddDelta(event.content_delta(), &transcript->content, transcript);
      break;
    case v1::ChatEvent::kToolCallDelta:
      AddKind("tool_call", transcript);
      transcript->tool_calls.push_back(event.tool_call_delta());
      break;
    case v1::ChatEvent::kFinished:
      AddKind("finished", transcript);
      transcript->finished = event.finished();
      break;
    case v1::ChatEvent::EVENT_NOT_SET:
      AddKind("nothing", transcript);
      break;
  }
}

void Add(const v1::GenerateEvent& event, Transcript* transcript) {
  switch (event.event_case()) {
    case v1::GenerateEvent::kStarted:
      AddKind("started", transcript);
      transcript->started = event.started();
      break;
    case v1::GenerateEvent::kDelta:
      AddKind("delta", transcript);
      AddDelta(event.delta(), &transcript->content, transcript);
      break;
    case v1::GenerateEvent::kPromptLogprobs:
      AddKind("prompt_logprobs", transcript);
      for (float logprob : event.prompt_logprobs().logprobs()) {
        transcript->prompt_logprobs.push_back(logprob);
      }
      break;
    case v1::GenerateEvent::kFinished:
      AddKind("finished", transcript);
      transcript->finished = event.finished();
      break;
    case v1::GenerateEvent::EVENT_NOT_SET:
      AddKind("nothing", transcript);
      break;
  }
}

Transcript ReadAll(ChatCall& call) { return ReadAllOf<ChatCall, v1::ChatEvent>(call); }
Transcript ReadAll(GenerateCall& call) { return ReadAllOf<GenerateCall, v1::GenerateEvent>(call); }
Transcript RunChat(TestRouter& router, const v1::ChatRequest& request) {
  return ReadAll(*StartChat(router, request));
}
Transcript RunGenerate(TestRouter& router, const v1::GenerateRequest& request) {
  return ReadAll(*StartGenerate(router, request));
}

v1::ChatRequest UserSays(absl::string_view text) {
  v1::ChatRequest request;
  v1::ChatMessage* message = request.add_messages();
  message->set_role("user");
  message->set_content(std::string(text));
  return request;
}

v1::GenerateRequest Complete(absl::string_view text) {
  v1::GenerateRequest request;
  request.set_text(std::string(text));
  return request;
}

absl::Status SendControl(TestRouter& router, const v1::ControlRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(20)));
  v1::ControlResponse response;
  return FromGrpcStatus(router.stub().Control(&context, request, &response));
}

}  // namespace conclave
