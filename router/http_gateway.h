#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/metrics.h"
#include "router/http_server.h"
#include "router/openai_stream.h"
#include "router/request_engine.h"
#include "router/router_metrics.h"
#include "router/served_model.h"

namespace conclave {

struct HttpGatewayOptions {
  // Web pages of this origin may use the API ("*": of any). Empty: only pages that it serves.
  std::string cors_origin;
};

// The HTTP door of the engine, as OpenAI's clients know it; docs/api.md lists the paths. Decodes,
// acts, encodes: what a request means is the engine's, what its JSON looks like is openai_*.h.
// Held by a shared pointer: what it has the engine do may end after the server that asked.
class HttpGateway final : public std::enable_shared_from_this<HttpGateway> {
 public:
  // All borrowed. model, metrics and registry outlive the engine, the engine outlives the server.
  HttpGateway(const ServedModel* model, RequestEngine* engine, RouterMetrics* metrics,
              const Metrics* registry, HttpGatewayOptions options);

  // For HttpServerOptions. Thread-safe, does not block.
  HttpHandler Handler();

 private:
  // A request on its way.
  struct Call {
    HttpRequest request;
    std::shared_ptr<HttpExchange> exchange;
    std::string id;  // of the path, where it has one
  };
  struct Route {
    absl::string_view method;
    absl::string_view path;  // may hold one "{id}"
    void (HttpGateway::*handle)(Call call);
  };
  static const Route kRoutes[];

  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange);
  void ChatCompletions(Call call);
  void Completions(Call call);
  void Tokenize(Call call);
  void Detokenize(Call call);
  void Control(Call call);
  void Models(Call call);
  void Model(Call call);
  void Health(Call call);
  void MetricsText(Call call);

  // Where a request's bytes are too many for the server's threads, on one for long work.
  void RunSized(Call call, absl::string_view method, absl::AnyInvocable<void(Call call)> act);
  void BeginChat(Call call);
  void BeginCompletion(Call call);
  absl::StatusOr<std::string> TokenizedJson(absl::string_view request_body) const;
  absl::StatusOr<std::string> DetokenizedJson(absl::string_view request_body) const;

  // Everything that is answered has the headers of CommonHeaders.
  void Send(const Call& call, HttpResponse response) const;
  // Counts it and answers with the JSON or with what was wrong.
  void FinishUnary(const Call& call, absl::string_view method, absl::StatusOr<std::string> json);
  void Preflight(const Call& call) const;
  std::vector<std::pair<std::string, std::string>> CommonHeaders() const;
  OpenAiResponseInfo ResponseInfo(std::string id) const;
  std::string ModelJson() const;
  TokenBytes BytesOfTokens() const;

  const ServedModel* const model_;
  RequestEngine* const engine_;
  RouterMetrics* const metrics_;
  const Metrics* const registry_;
  const HttpGatewayOptions options_;
  const int64_t start_time_;  // seconds since 1970
};

}  // namespace conclave
