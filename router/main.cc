// conclave-router: the door of the cluster. See router/request_engine.h for what it does.

#include <sys/resource.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "common/flags.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "router/http_gateway.h"
#include "router/http_server.h"
#include "router/inference_service.h"
#include "router/request_engine.h"
#include "router/router_metrics.h"
#include "router/served_model.h"
#include "router/worker_pool.h"
#include "rpc/address.h"
#include "rpc/announce.h"
#include "rpc/name_resolver.h"
#include "rpc/server_runner.h"
#include "rpc/shutdown_signals.h"

namespace conclave {
namespace {

struct Flags {
  std::string listen = "0.0.0.0:50050";
  std::string http_listen = "127.0.0.1:0";
  std::string log_level = "info";
  std::string log_format = "text";
  std::string default_mode = "thinking";
  double drain_seconds = absl::ToDoubleSeconds(limits::kDefaultDrainDeadline);
  double failover_wait_seconds = 30;
  std::string budget_ceilings_file;
  ServedModelOptions model;
  WorkerPoolOptions pool;
  RequestEngineOptions engine;
  HttpServerOptions http;
  HttpGatewayOptions gateway;
};

void DefineFlags(CLI::App& app, Flags* flags) {
  app.add_option("--listen", flags->listen, "gRPC HOST:PORT; port 0 picks a free one")
      ->capture_default_str();
  app.add_option("--http_listen", flags->http_listen,
                 "HTTP HOST:PORT: OpenAI's API and /metrics; port 0 picks a free one")
      ->capture_default_str();
  app.add_option("--http_threads", flags->http.threads,
                 "Threads that read and write HTTP; streams that wait need none")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--http_cors_origin", flags->gateway.cors_origin,
                 "Origin of web pages that may use the API; * for all (default: none)");
  app.add_option("--model", flags->model.model_dir,
                 "Directory with tokenizer.json, tokenizer_config.json, config.json and "
                 "generation_config.json; weights are not read")
      ->required();
  app.add_option("--model_name", flags->model.model_name,
                 "Name clients ask for (default: the directory's)");
  app.add_option("--chat_template", flags->model.chat_template,
                 "How messages become a prompt; auto: as the checkpoint says")
      ->check(CLI::IsMember({"auto", "qwen3", "instruct-2507", "thinking-2507"}))
      ->capture_default_str();
  app.add_option("--default_mode", flags->default_mode,
                 "Thinking mode of requests that do not say: thinking or off")
      ->check(CLI::IsMember({"thinking", "off"}))
      ->capture_default_str();
  app.add_option("--workers", flags->pool.targets,
                 "gRPC targets of the workers, by comma; dns:///NAME:PORT: a worker at each of the "
                 "name's addresses, which is asked for again every 5 seconds")
      ->delimiter(',')
      ->required();
  app.add_option("--max_inflight", flags->engine.max_inflight,
                 "Requests in flight; more are refused with RESOURCE_EXHAUSTED")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--prompt_threads", flags->engine.prompt_threads,
                 "Threads that tokenize large prompts")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--budget_ceilings", flags->budget_ceilings_file,
                 "JSON file of thinking budget ceilings by API key: "
                 "{\"default\": N, \"keys\": {\"KEY\": N}}, tokens, -1 for no limit");
  app.add_option("--adaptive_budget_queue", flags->engine.budgets.adaptive_queue,
                 "Requests waiting per worker past which new thinking budgets shrink; 0: never")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--adaptive_budget_floor", flags->engine.budgets.adaptive_floor,
                 "Tokens of a thinking budget that a queue takes nothing from")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--prefix_tokens_per_request", flags->pool.tokens_per_request,
                 "Cached tokens of a prompt for which a worker may have one request more than "
                 "another and still gets it")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--prefill_ahead", flags->engine.prefill_ahead,
                 "Let idle workers compute the beginning of a conversation's next prompt, which is "
                 "without the answer's thinking; true or false")
      ->capture_default_str();
  app.add_option("--failover_wait_seconds", flags->failover_wait_seconds,
                 "How long a request that lost its worker waits for one")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_option("--drain_seconds", flags->drain_seconds,
                 "How long requests in flight may go on after SIGTERM")
      ->check(CLI::Range(0.0, limits::kMaxDrainSeconds))
      ->capture_default_str();
  app.add_option("--log_level", flags->log_level, "debug, info, warning or error")
      ->capture_default_str();
  app.add_option("--log_format", flags->log_format, "text for people, json: one object a line")
      ->capture_default_str();
}

std::vector<FlagGroup> Groups() {
  return {
      {"Model", {"--model", "--model_name", "--chat_template"}},
      {"Network", {"--listen", "--http_listen", "--http_threads", "--http_cors_origin"}},
      {"Workers",
       {"--workers", "--failover_wait_seconds", "--prefix_tokens_per_request", "--prefill_ahead"}},
      {"Load", {"--max_inflight", "--prompt_threads", "--drain_seconds"}},
      {"Thinking",
       {"--default_mode", "--budget_ceilings", "--adaptive_budget_queue",
        "--adaptive_budget_floor"}},
      {"Logs", {"--log_level", "--log_format"}}};
}

absl::Status CheckTargets(const std::vector<std::string>& targets) {
  for (const std::string& target : targets) {
    RETURN_IF_ERROR(CheckPeerTarget(target));
    if (std::count(targets.begin(), targets.end(), target) > 1) {
      return absl::InvalidArgumentError(absl::StrCat("workers names ", target, " twice"));
    }
  }
  return absl::OkStatus();
}

// Says once that the router serves: when a worker can take a request. Not while draining.
class Readiness {
 public:
  explicit Readiness(ServerRunner* server) : server_(server) {}

  void Announce() {
    absl::MutexLock lock(&mutex_);
    if (closed_) return;
    server_->SetServing(true);
    PrintReady();
  }
  void Close() {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    server_->SetServing(false);
  }

 private:
  absl::Mutex mutex_;
  ServerRunner* const server_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

// A stream holds a file descriptor, and most systems give a process 1,024 unless it asks. Returns
// how many connections of HTTP fit, with a quarter left for everything else.
int AllowFiles() {
  rlimit files = {};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return limits::kMaxHttpConnections;
  constexpr rlim_t kWanted = 2 * limits::kMaxHttpConnections;
  if (files.rlim_cur < kWanted) {
    files.rlim_cur = std::min(files.rlim_max, kWanted);
    setrlimit(RLIMIT_NOFILE, &files);
  }
  return static_cast<int>(
      std::min<rlim_t>(limits::kMaxHttpConnections, files.rlim_cur - files.rlim_cur / 4));
}

// Requests in flight go on and can be controlled; then the servers stop.
void Drain(const Flags& flags, RequestEngine& engine, HttpServer& http, ServerRunner& server) {
  const absl::Time deadline = absl::Now() + absl::Seconds(flags.drain_seconds);
  LOG_INFO("draining {} requests", engine.inflight());
  engine.BeginDrain();
  if (!engine.WaitIdle(deadline)) {
    LOG_WARNING("drain deadline passed, cancelling {} requests", engine.inflight());
  }
  const auto left = [deadline] {
    return std::max(absl::Milliseconds(100), deadline - absl::Now());
  };
  http.DrainAndStop(left());
  server.DrainAndStop(left());
}

absl::Status Run(Flags flags) {
  ASSIGN_OR_RETURN(const HostPort http_listen, ParseHostPort(flags.http_listen));
  if (!flags.budget_ceilings_file.empty()) {
    ASSIGN_OR_RETURN(flags.engine.budgets.ceilings, LoadBudgetCeilings(flags.budget_ceilings_file));
  }
  flags.engine.tokens.failover_wait = absl::Seconds(flags.failover_wait_seconds);
  flags.model.default_mode =
      flags.default_mode == "off" ? ThinkingMode::kOff : ThinkingMode::kThinking;
  ShutdownSignals signals;

  Metrics metrics;
  RouterMetrics router_metrics(&metrics);
  // Small files: a second or so. Ports are bound after them, for nothing can be answered before.
  ASSIGN_OR_RETURN(const std::unique_ptr<ServedModel> model, LoadServedModel(flags.model));
  LOG_INFO("model {} of {}, template {}, {} ids, context {}", model->name, flags.model.model_dir,
           std::string(ChatTemplateName(model->template_kind)), model->vocabulary().size(),
           model->config.MaxContext());
  LOG_INFO("workers {}, max_inflight {}", absl::StrJoin(flags.pool.targets, ","),
           flags.engine.max_inflight);

  WorkerPool pool(flags.pool, model->Info(), &router_metrics);
  RequestEngine engine(model.get(), &pool, &router_metrics, flags.engine);
  InferenceService service(&engine, &router_metrics);
  ServerOptions server_options;
  server_options.listen = flags.listen;
  server_options.services = {&service};
  ASSIGN_OR_RETURN(const std::unique_ptr<ServerRunner> server, ServerRunner::Start(server_options));
  flags.http.host = http_listen.host;
  flags.http.port = http_listen.port;
  flags.http.max_connections = AllowFiles();
  flags.http.handler =
      std::make_shared<HttpGateway>(model.get(), &engine, &router_metrics, &metrics, flags.gateway)
          ->Handler();
  ASSIGN_OR_RETURN(const std::unique_ptr<HttpServer> http, HttpServer::Start(flags.http));
  const std::string http_address = FormatHostPort(http_listen.host, http->port());
  PrintListening({{"grpc", server->address()}, {"http", http_address}, {"metrics", http_address}});
  // Serving means that a worker can take a request; one that is lost later is waited for.
  const auto readiness = std::make_shared<Readiness>(server.get());
  pool.OnFirstReady([readiness] { readiness->Announce(); });
  signals.Wait();
  readiness->Close();
  Drain(flags, engine, *http, *server);
  return absl::OkStatus();
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  CLI::App app("The router of a Conclave cluster: chat in, tokens to the workers, events out.");
  conclave::Flags flags;
  conclave::DefineFlags(app, &flags);
  const auto check = [&flags]() -> std::vector<absl::Status> {
    return {
        conclave::InitLog("router", flags.log_level, flags.log_format),
        conclave::ForFlag("--workers", conclave::CheckTargets(flags.pool.targets)),
        conclave::ForFlag("--listen", conclave::CheckListenAddress(flags.listen)),
        conclave::ForFlag("--http_listen", conclave::ParseHostPort(flags.http_listen).status()),
        conclave::ForFlag("--budget_ceilings",
                          flags.budget_ceilings_file.empty()
                              ? absl::OkStatus()
                              : conclave::LoadBudgetCeilings(flags.budget_ceilings_file).status())};
  };
  const std::optional<int> end = conclave::ParseFlags(app, "conclave-router", "CONCLAVE_ROUTER",
                                                      conclave::Groups(), check, argc, argv);
  if (end.has_value()) return *end;
  const absl::Status status = conclave::Run(std::move(flags));
  if (status.ok()) return 0;
  std::cerr << "conclave-router: " << status.ToString() << std::endl;
  return 1;
}
