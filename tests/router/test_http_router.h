#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/check.h"
#include "common/metrics.h"
#include "nlohmann/json.hpp"
#include "router/http_gateway.h"
#include "router/http_server.h"
#include "tests/router/test_http.h"
#include "tests/router/test_router.h"

namespace conclave {

// What of a router the gateway needs, put together as in main.cc.
class HttpRouter {
 public:
  explicit HttpRouter(const std::vector<FakeWorker*>& workers, TestRouterOptions options = {},
                      HttpGatewayOptions gateway = {})
      : metrics_(&registry_) {
    for (FakeWorker* worker : workers) options.pool.targets.push_back(worker->target());
    pool_ = std::make_unique<WorkerPool>(options.pool, options.model->Info(), &metrics_);
    engine_ =
        std::make_unique<RequestEngine>(options.model, pool_.get(), &metrics_, options.engine);
    HttpServerOptions server;
    server.handler = std::make_shared<HttpGateway>(options.model, engine_.get(), &metrics_,
                                                   &registry_, std::move(gateway))
                         ->Handler();
    auto started = HttpServer::Start(std::move(server));
    CHECK(started.ok()) << started.status().ToString();
    server_ = *std::move(started);
    CHECK(Eventually([&] { return pool_->AnyReady() || workers.empty(); }));
  }

  int port() const { return server_->port(); }
  RequestEngine& engine() { return *engine_; }
  bool WaitForIdle() { return engine_->WaitIdle(absl::Now() + absl::Seconds(20)); }

  RawResponse Post(absl::string_view path, const nlohmann::json& body,
                   absl::string_view headers = "") {
    return Fetch(port(), "POST", path, body.dump(), headers);
  }
  RawResponse Get(absl::string_view path) { return Fetch(port(), "GET", path); }
  RawClient Start(const nlohmann::json& body, absl::string_view headers = "") {
    RawClient client(port());
    client.Request("POST", "/v1/chat/completions", body.dump(), headers);
    return client;
  }

 private:
  Metrics registry_;
  RouterMetrics metrics_;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<RequestEngine> engine_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace conclave
