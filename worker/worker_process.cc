#include "worker/worker_process.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "expert_shard/shard_host.h"
#include "rpc/address.h"
#include "rpc/announce.h"
#include "rpc/server_runner.h"
#include "rpc/shutdown_signals.h"
#include "worker/worker_service.h"

namespace conclave {
namespace {

// How often readiness is looked at. A shard that is lost or back shows in health within this time.
constexpr absl::Duration kReadyPoll = absl::Milliseconds(50);

// Keeps health in step with WorkerService::Ready until it is destroyed.
class ReadinessMonitor {
 public:
  ReadinessMonitor(WorkerService& service, ServerRunner& server)
      : thread_([this, &service, &server] { Watch(service, server); }) {}
  ~ReadinessMonitor() {
    stop_.Notify();
    thread_.join();
  }

 private:
  void Watch(WorkerService& service, ServerRunner& server) {
    bool announced = false;
    std::optional<bool> serving;
    do {
      const absl::Status ready = service.Ready();
      if (serving == ready.ok()) continue;
      serving = ready.ok();
      server.SetServing(ready.ok());
      if (ready.ok()) {
        LOG_INFO("serving");
        if (!announced) PrintReady();
        announced = true;
      } else {
        LOG_WARNING("not serving: {}", std::string(ready.message()));
      }
    } while (!stop_.WaitForNotificationWithTimeout(kReadyPoll));
  }

  absl::Notification stop_;
  std::thread thread_;
};

}  // namespace

absl::Status RunWorkerProcess(const WorkerProcessOptions& options) {
  // Before anything starts a thread.
  ASSIGN_OR_RETURN(const std::vector<int> cpus, PlaceProcess(options.placement));
  WorkerRuntimeOptions runtime_options = options.runtime;
  const absl::Span<const int> pinned = ThreadCpus(options.placement, cpus);
  runtime_options.cpus.assign(pinned.begin(), pinned.end());
  ShutdownSignals signals;
  const auto on_device_failure = [&signals](const absl::Status& failure) { signals.Fail(failure); };
  runtime_options.on_device_failure = on_device_failure;
  ASSIGN_OR_RETURN(const HostPort metrics_listen, ParseHostPort(options.metrics_listen));
  // The runtime uses the metrics, the service the runtime, the server the service: each is declared
  // after what it uses.
  Metrics metrics;
  prometheus::Counter& drains =
      metrics.Counter("conclave_worker_drains_total", "Times this worker was told to stop.");
  ASSIGN_OR_RETURN(const std::unique_ptr<WorkerRuntime> runtime,
                   WorkerRuntime::Open(runtime_options));
  WorkerService service(runtime->model());
  ServerOptions server_options;
  server_options.listen = options.listen;
  server_options.services = {&service};
  // Its experts run for other workers too, at the same address; ready before the worker is, which
  // may wait for theirs.
  std::unique_ptr<ShardHost> shard;
  if (runtime->serves_experts()) {
    shard = std::make_unique<ShardHost>(&metrics, runtime->config(),
                                        options.runtime.transports.shared_memory, runtime->nccl());
    server_options.services.push_back(shard->service());
    server_options.traffic = Traffic::kTensors;
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<ServerRunner> server, ServerRunner::Start(server_options));
  ASSIGN_OR_RETURN(const int metrics_port, metrics.Serve(metrics_listen.host, metrics_listen.port));
  PrintListening({{"grpc", server->address()},
                  {"metrics", FormatHostPort(metrics_listen.host, metrics_port)}});
  RETURN_IF_ERROR(runtime->Load(
      metrics, [](absl::string_view progress) { LOG_INFO("loaded {}", std::string(progress)); },
      shard != nullptr ? shard->placement_epoch() : 0));
  if (shard != nullptr) {
    shard->Serve(runtime->model().name(), runtime->fingerprint(), runtime->TakeServedExperts(),
                 on_device_failure);
  }
  service.SetEngine(&runtime->engine(), runtime->experts(), runtime->has_local_experts());
  {
    ReadinessMonitor monitor(service, *server);
    signals.Wait();
    service.StartDraining();
  }
  const absl::Status failure = signals.failure();
  const absl::Duration drain = failure.ok() ? options.drain : limits::kLostDeviceDrain;
  const absl::Time end = absl::Now() + drain;
  drains.Increment();
  server->SetServing(false);
  LOG_INFO("draining for at most {}", absl::FormatDuration(drain));
  // Until its requests are done health and Describe are answered, for the end of a gRPC server
  // takes its port away at once; and its experts go last: until then requests at other workers run
  // on as well. A tenth of the time is for the answers to what those have sent.
  runtime->engine().AwaitIdle(shard != nullptr ? end - drain / 10 : end);
  if (shard != nullptr) shard->BeginDrain();
  server->DrainAndStop(std::max(absl::Milliseconds(100), end - absl::Now()));
  return failure;
}

}  // namespace conclave
