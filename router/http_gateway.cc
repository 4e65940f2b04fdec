#include "router/http_gateway.h"

#include <optional>

#include "absl/random/random.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "common/trace_context.h"
#include "router/http_answer.h"
#include "router/http_control.h"
#include "router/openai_chat.h"
#include "router/openai_completion.h"
#include "router/openai_error.h"
#include "router/openai_fields.h"
#include "router/openai_json.h"
#include "router/prompt_builder.h"

namespace conclave {
namespace {

constexpr absl::string_view kIdHole = "{id}";

// Whether a path is one of the route's; what stands for {id} is not empty.
bool Matches(absl::string_view pattern, absl::string_view path, std::string* id) {
  const size_t hole = pattern.find(kIdHole);
  if (hole == absl::string_view::npos) return pattern == path;
  if (!absl::ConsumePrefix(&path, pattern.substr(0, hole)) ||
      !absl::ConsumeSuffix(&path, pattern.substr(hole + kIdHole.size())) || path.empty()) {
    return false;
  }
  *id = std::string(path);
  return true;
}

HttpResponse JsonResponse(std::string body) {
  HttpResponse response;
  response.body = std::move(body);
  return response;
}

// The id of a request: the client's own, if it gave one that can be used.
std::string RequestId(const HttpRequest& request, absl::string_view prefix, int num_choices) {
  const absl::string_view given = request.Header("x-request-id");
  if (ValidateRequestId(given).ok() &&
      ValidateRequestId(ChoiceId(given, num_choices - 1, num_choices)).ok()) {
    return std::string(given);
  }
  return absl::StrCat(prefix, absl::Hex(absl::Uniform<uint64_t>(absl::BitGen()), absl::kZeroPad16));
}

Caller CallerOf(const HttpRequest& request) {
  Caller caller;
  const absl::string_view value = request.Header("authorization");
  constexpr absl::string_view kScheme = "Bearer ";
  if (absl::StartsWithIgnoreCase(value, kScheme)) {
    caller.api_key = std::string(value.substr(kScheme.size()));
  }
  caller.traceparent = std::string(request.Header(kTraceparent));
  return caller;
}

absl::Status CheckModel(const OpenAiFields& body, const std::string& served) {
  ASSIGN_OR_RETURN(const std::optional<std::string> asked, body.String("model"));
  if (!asked.has_value() || asked->empty() || *asked == served) return absl::OkStatus();
  return errors::UnknownModel(*asked, served);
}

}  // namespace

const HttpGateway::Route HttpGateway::kRoutes[] = {
    {"POST", "/v1/chat/completions", &HttpGateway::ChatCompletions},
    {"POST", "/v1/completions", &HttpGateway::Completions},
    {"GET", "/v1/models", &HttpGateway::Models},
    {"GET", "/v1/models/{id}", &HttpGateway::Model},
    {"POST", "/v1/requests/{id}/control", &HttpGateway::Control},
    {"POST", "/tokenize", &HttpGateway::Tokenize},
    {"POST", "/detokenize", &HttpGateway::Detokenize},
    {"GET", "/health", &HttpGateway::Health},
    {"GET", "/metrics", &HttpGateway::MetricsText},
};

HttpGateway::HttpGateway(const ServedModel* model, RequestEngine* engine, RouterMetrics* metrics,
                         const Metrics* registry, HttpGatewayOptions options)
    : model_(model),
      engine_(engine),
      metrics_(metrics),
      registry_(registry),
      options_(std::move(options)),
      start_time_(absl::ToUnixSeconds(absl::Now())) {}

HttpHandler HttpGateway::Handler() {
  return [self = shared_from_this()](HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
    self->Handle(std::move(request), std::move(exchange));
  };
}

void HttpGateway::Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
  Call call{.request = std::move(request), .exchange = std::move(exchange), .id = {}};
  if (call.request.method == "OPTIONS" && !options_.cors_origin.empty()) return Preflight(call);
  for (const Route& route : kRoutes) {
    if (!Matches(route.path, call.request.path, &call.id)) continue;
    if (route.method == call.request.method) return (this->*route.handle)(std::move(call));
    HttpResponse response =
        OpenAiHttpError(405, absl::StrCat("method is ", call.request.method.substr(0, 32),
                                          ", want ", route.method, " for ", route.path));
    response.headers.emplace_back("Allow", route.method == "GET" ? "GET, HEAD" : route.method);
    return Send(call, std::move(response));
  }
  Send(call, OpenAiHttpError(404, absl::StrCat("path is \"", call.request.path.substr(0, 200),
                                               "\", which does not exist here")));
}

// ---- chat and completion ----

void HttpGateway::ChatCompletions(Call call) {
  RunSized(std::move(call), "Chat", [this](Call sized) { BeginChat(std::move(sized)); });
}

void HttpGateway::Completions(Call call) {
  RunSized(std::move(call), "Generate", [this](Call sized) { BeginCompletion(std::move(sized)); });
}

void HttpGateway::RunSized(Call call, absl::string_view method,
                           absl::AnyInvocable<void(Call call)> act) {
  if (call.request.body.size() <= limits::kMaxInlinePromptBytes) return act(std::move(call));
  const Call refused{.request = {}, .exchange = call.exchange, .id = {}};
  const absl::Status queued =
      engine_->RunLong([self = shared_from_this(), act = std::move(act),
                        call = std::move(call)]() mutable { act(std::move(call)); });
  if (!queued.ok()) FinishUnary(refused, method, queued);
}

void HttpGateway::BeginChat(Call call) {
  const absl::StatusOr<OpenAiChatRequest> parsed = ParseOpenAiChat(call.request.body);
  if (!parsed.ok()) return FinishUnary(call, "Chat", parsed.status());
  const int num_choices = parsed->num_choices();
  const std::string id = RequestId(call.request, "chatcmpl-", num_choices);
  HttpAnswerOptions options{num_choices, parsed->answer.stream, CommonHeaders()};
  options.headers.emplace_back("X-Request-Id", id);
  AnswerWithChoices<v1::ChatEvent>(
      call.exchange, MakeOpenAiChatEncoder(*parsed, ResponseInfo(id), BytesOfTokens()),
      std::move(options), [&](int choice, RequestObserver<v1::ChatEvent>* observer) {
        v1::ChatRequest request = parsed->Choice(choice);
        request.set_request_id(ChoiceId(id, choice, num_choices));
        return engine_->Chat(request, CallerOf(call.request), observer);
      });
}

void HttpGateway::BeginCompletion(Call call) {
  const absl::StatusOr<OpenAiCompletionRequest> parsed = ParseOpenAiCompletion(call.request.body);
  if (!parsed.ok()) return FinishUnary(call, "Generate", parsed.status());
  const int num_choices = parsed->num_choices();
  const std::string id = RequestId(call.request, "cmpl-", num_choices);
  HttpAnswerOptions options{num_choices, parsed->answer.stream, CommonHeaders()};
  options.headers.emplace_back("X-Request-Id", id);
  AnswerWithChoices<v1::GenerateEvent>(
      call.exchange, MakeOpenAiCompletionEncoder(*parsed, ResponseInfo(id), BytesOfTokens()),
      std::move(options), [&](int choice, RequestObserver<v1::GenerateEvent>* observer) {
        v1::GenerateRequest request = parsed->Choice(choice);
        request.set_request_id(ChoiceId(id, choice, num_choices));
        return engine_->Generate(request, CallerOf(call.request), observer);
      });
}

void HttpGateway::Control(Call call) {
  const absl::StatusOr<v1::ControlRequest> parsed = ParseHttpControl(call.id, call.request.body);
  if (!parsed.ok()) return FinishUnary(call, "Control", parsed.status());
  ControlChoices(*engine_, *parsed, [self = shared_from_this(), call](const absl::Status& status) {
    if (!status.ok()) return self->FinishUnary(call, "Control", status);
    self->FinishUnary(call, "Control", DumpJson({{"id", call.id}, {"status", "ok"}}));
  });
}

// ---- tokens ----

void HttpGateway::Tokenize(Call call) {
  RunSized(std::move(call), "Tokenize", [this](const Call& sized) {
    FinishUnary(sized, "Tokenize", TokenizedJson(sized.request.body));
  });
}

absl::StatusOr<std::string> HttpGateway::TokenizedJson(absl::string_view request_body) const {
  ASSIGN_OR_RETURN(const JsonValue json, ParseJson(request_body));
  if (!json.is_object()) return WrongField("the body", json, "an object");
  const OpenAiFields body(json, "");
  RETURN_IF_ERROR(CheckModel(body, model_->name));
  ASSIGN_OR_RETURN(std::optional<std::string> text, body.String("prompt"));
  if (!text.has_value()) {
    ASSIGN_OR_RETURN(text, body.String("text"));
  }
  if (!text.has_value()) return MissingField("prompt", "a string");
  v1::TokenizeRequest request;
  request.set_text(*std::move(text));
  ASSIGN_OR_RETURN(const v1::TokenizeResponse tokenized, engine_->Tokenize(request));
  return DumpJson({{"tokens", tokenized.ids()},
                   {"count", tokenized.ids_size()},
                   {"max_model_len", engine_->GetModel().max_context()}});
}

void HttpGateway::Detokenize(Call call) {
  RunSized(std::move(call), "Detokenize", [this](const Call& sized) {
    FinishUnary(sized, "Detokenize", DetokenizedJson(sized.request.body));
  });
}

absl::StatusOr<std::string> HttpGateway::DetokenizedJson(absl::string_view request_body) const {
  ASSIGN_OR_RETURN(const JsonValue json, ParseJson(request_body));
  if (!json.is_object()) return WrongField("the body", json, "an object");
  const OpenAiFields body(json, "");
  RETURN_IF_ERROR(CheckModel(body, model_->name));
  ASSIGN_OR_RETURN(const JsonValue* tokens, body.Array("tokens"));
  if (tokens == nullptr) return MissingField("tokens", "a list of token ids");
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, ReadIds("tokens", *tokens));
  v1::DetokenizeRequest request;
  request.mutable_ids()->Add(ids.begin(), ids.end());
  ASSIGN_OR_RETURN(const v1::DetokenizeResponse decoded, engine_->Detokenize(request));
  return DumpJson({{"prompt", decoded.text()}});
}

// ---- what is served, and how it does ----

std::string HttpGateway::ModelJson() const {
  return DumpJson({{"id", model_->name},
                   {"object", "model"},
                   {"created", start_time_},
                   {"owned_by", "conclave"},
                   {"max_model_len", engine_->GetModel().max_context()}});
}

void HttpGateway::Models(Call call) {
  FinishUnary(call, "GetModel", absl::StrCat("{\"object\":\"list\",\"data\":[", ModelJson(), "]}"));
}

void HttpGateway::Model(Call call) {
  if (call.id != model_->name) {
    return FinishUnary(call, "GetModel", errors::UnknownModel(call.id, model_->name));
  }
  FinishUnary(call, "GetModel", ModelJson());
}

void HttpGateway::Health(Call call) {
  const v1::ClusterStatus status = engine_->GetCluster();
  if (status.router().draining()) {
    return Send(call, OpenAiErrorResponse(errors::Draining("the router")));
  }
  if (!status.serving()) {
    return Send(call, OpenAiErrorResponse(errors::NoWorker(status.workers_size())));
  }
  Send(call, JsonResponse("{\"status\":\"ok\"}"));
}

void HttpGateway::MetricsText(Call call) {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4";
  response.body = registry_->Text();
  Send(call, std::move(response));
}

// ---- answers ----

void HttpGateway::Send(const Call& call, HttpResponse response) const {
  for (auto& header : CommonHeaders()) response.headers.push_back(std::move(header));
  call.exchange->Send(std::move(response));
}

void HttpGateway::FinishUnary(const Call& call, absl::string_view method,
                              absl::StatusOr<std::string> json) {
  metrics_->CountRequest(method, json.status().code());
  Send(call, json.ok() ? JsonResponse(*std::move(json)) : OpenAiErrorResponse(json.status()));
}

void HttpGateway::Preflight(const Call& call) const {
  HttpResponse response;
  response.status = 204;
  response.headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
  // Clients send headers of their own (x-stainless-...): none of them matters here.
  const absl::string_view wanted = call.request.Header("access-control-request-headers");
  if (!wanted.empty()) {
    response.headers.emplace_back("Access-Control-Allow-Headers", std::string(wanted));
  }
  response.headers.emplace_back("Access-Control-Max-Age", "86400");
  Send(call, std::move(response));
}

std::vector<std::pair<std::string, std::string>> HttpGateway::CommonHeaders() const {
  if (options_.cors_origin.empty()) return {};
  return {{"Access-Control-Allow-Origin", options_.cors_origin},
          {"Access-Control-Expose-Headers", "X-Request-Id, Retry-After"}};
}

OpenAiResponseInfo HttpGateway::ResponseInfo(std::string id) const {
  OpenAiResponseInfo info;
  info.id = std::move(id);
  info.created = absl::ToUnixSeconds(absl::Now());
  info.model = model_->name;
  info.fingerprint = engine_->GetModel().model().fingerprint();
  return info;
}

TokenBytes HttpGateway::BytesOfTokens() const {
  return [model = model_](uint32_t id) { return model->vocabulary().Bytes(id); };
}

}  // namespace conclave
