// conclave-expert-shard: hosts experts of one Qwen3 MoE model for any number of workers.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/cpu_placement.h"
#include "common/errors.h"
#include "common/flags.h"
#include "common/id_list.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "expert_shard/device_experts.h"
#include "expert_shard/shard_host.h"
#include "expert_shard/weight_loader.h"
#include "kernels/device.h"
#include "model/expert_placement.h"
#include "model/fingerprint.h"
#include "model/memory_plan.h"
#include "model/qwen3_config.h"
#include "rpc/address.h"
#include "rpc/announce.h"
#include "rpc/server_runner.h"
#include "rpc/shutdown_signals.h"
#include "rpc/transport_choice.h"

#if defined(CONCLAVE_HAVE_NCCL)
#include "kernels/cuda/nccl.h"
#endif

#if defined(CONCLAVE_HAVE_CUDA)
#include "expert_shard/cuda/open_cuda_experts.h"
#endif

namespace conclave {
namespace {

struct ShardOptions {
  std::string model;
  ExpertChoice experts;
  std::string listen = "127.0.0.1:50052";
  std::string metrics_listen = "127.0.0.1:0";
  std::string tls_cert_file;
  std::string tls_key_file;
  std::string log_level = "info";
  std::string log_format = "text";
  std::string cpu_isa = "auto";
  std::string expert_transport = "auto";
  std::string shared_memory = "auto";
  std::string weight_dtype = "auto";
  std::string device = "cpu";
  std::string load_format = "auto";
  double gpu_memory_utilization = 0.9;
  bool deterministic = true;
  CpuPlacementOptions placement;
  int threads = 0;
  double drain_seconds = absl::ToDoubleSeconds(limits::kDefaultDrainDeadline);
};

void AddFlags(CLI::App* app, ShardOptions* options) {
  app->add_option("--model", options->model, "Directory of the checkpoint")->required();
  app->add_option("--experts", options->experts.list, "Experts to host, such as 0-31,40");
  app->add_option("--shard_index", options->experts.shard_index,
                  "Host the experts of this shard of --num_shards instead, from 0");
  app->add_option("--num_shards", options->experts.num_shards,
                  "Equal parts that the experts are divided into, in rising order");
  app->add_option("--listen", options->listen, "HOST:PORT of gRPC; port 0 picks a free one")
      ->capture_default_str();
  app->add_option("--metrics_listen", options->metrics_listen,
                  "HOST:PORT of /metrics (HTTP); port 0 picks a free one")
      ->capture_default_str();
  app->add_option("--tls_cert_file", options->tls_cert_file, "PEM certificate; with the key: TLS");
  app->add_option("--tls_key_file", options->tls_key_file, "PEM private key");
  app->add_option("--threads", options->threads, "Compute threads; 0: one for each CPU it may use")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->add_option("--cpu_isa", options->cpu_isa, "auto, plain, avx2, avx512, avx512_bf16 or amx")
      ->capture_default_str();
  app->add_option("--weight_dtype", options->weight_dtype,
                  "How weights are kept: auto (as in the checkpoint), bf16, int8 or int4; the same "
                  "as the workers'")
      ->check(CLI::IsMember({"auto", "bf16", "fp8", "int8", "int4"}))
      ->capture_default_str();
  app->add_option("--device", options->device,
                  "Where experts run: cpu, cuda or cuda:N (the N-th GPU)")
      ->capture_default_str();
  app->add_option("--load_format", options->load_format,
                  "auto: the checkpoint; dummy: made-up weights of config.json's shapes, on a GPU")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  app->add_option("--gpu_memory_utilization", options->gpu_memory_utilization,
                  "Share of the GPU's memory for weights and workspace")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  app->add_option(
         "--deterministic", options->deterministic,
         "true: a row's result does not depend on the batch it was in; false, on a GPU: large "
         "batches by kernels that do")
      ->capture_default_str();
  app->add_option("--cpus", options->placement.cpus, "CPUs to run on, as 0-15,32-47");
  app->add_option("--numa_node", options->placement.numa_node,
                  "NUMA node whose CPUs and memory to use")
      ->check(CLI::Range(0, 1023));
  app->add_option("--drain_seconds", options->drain_seconds,
                  "How long SIGTERM lets accepted work run")
      ->check(CLI::Range(0.0, limits::kMaxDrainSeconds))
      ->capture_default_str();
  app->add_option(
         "--shared_memory", options->shared_memory,
         "auto: workers of this host may send frames through shared memory; off: gRPC only")
      ->check(CLI::IsMember({"auto", "off"}))
      ->capture_default_str();
  app->add_option("--expert_transport", options->expert_transport,
                  "How workers of this host may send frames: auto (nccl with --device=cuda, "
                  "shared_memory, grpc), nccl (the same, but do not start without it), "
                  "shared_memory (no nccl), or grpc")
      ->check(CLI::IsMember({"auto", "nccl", "shared_memory", "grpc"}))
      ->capture_default_str();
  app->add_option("--log_level", options->log_level, "debug, info, warning or error")
      ->capture_default_str();
  app->add_option("--log_format", options->log_format, "text for people, json: one object a line")
      ->capture_default_str();
}

std::vector<FlagGroup> Groups() {
  return {{"Model", {"--model", "--experts", "--shard_index", "--num_shards"}},
          {"Network",
           {"--listen", "--metrics_listen", "--expert_transport", "--shared_memory",
            "--tls_cert_file", "--tls_key_file"}},
          {"Compute",
           {"--device", "--threads", "--cpu_isa", "--weight_dtype", "--cpus", "--numa_node",
            "--load_format", "--gpu_memory_utilization", "--deterministic"}},
          {"Load", {"--drain_seconds"}},
          {"Logs", {"--log_level", "--log_format"}}};
}

absl::StatusOr<std::vector<int>> ChooseExperts(const ShardOptions& options,
                                               const Qwen3Config& config) {
  if (config.num_experts == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.model, " is a dense model: its worker needs no expert shard"));
  }
  return ChosenExperts(options.experts, config.num_experts);
}

absl::Status CheckDeviceFlags(const ShardOptions& options) {
  if (options.device == "cpu" && !options.deterministic) {
    return errors::OutOfRange("--deterministic on the CPU", "false", "true: it always is");
  }
  if (options.device == "cpu") {
    if (options.load_format == "auto") return absl::OkStatus();
    return absl::InvalidArgumentError(
        "--load_format is dummy, which needs --device=cuda; for the CPU, `conclave synth` writes a "
        "checkpoint of made-up weights");
  }
  if (options.weight_dtype != "auto") {
    return errors::OutOfRange("--weight_dtype on a device", options.weight_dtype,
                              "auto: as in the checkpoint");
  }
  return absl::OkStatus();
}

// What can be said of the flags before the model is read.
std::vector<absl::Status> CheckFlags(const ShardOptions& options) {
  std::vector<absl::Status> found = {
      InitLog("expert-shard", options.log_level, options.log_format),
      ForFlag("--listen", CheckListenAddress(options.listen)),
      ForFlag("--metrics_listen", ParseHostPort(options.metrics_listen).status()),
      ForFlag("--cpu_isa", ParseCpuIsa(options.cpu_isa).status()),
      ForFlag("--device", CheckDeviceName(options.device)),
      ForFlag("--cpus or --numa_node", CheckPlacement(options.placement)),
      ChooseTransports(options.expert_transport, options.shared_memory).status()};
  for (absl::Status& wrong : CheckExpertChoice(options.experts, "--experts")) {
    found.push_back(std::move(wrong));
  }
  if (!options.experts.IsGiven()) {
    found.push_back(
        absl::InvalidArgumentError("want either --experts or both --shard_index and --num_shards"));
  }
  if (options.tls_cert_file.empty() != options.tls_key_file.empty()) {
    found.push_back(
        absl::InvalidArgumentError("want both --tls_cert_file and --tls_key_file, or neither"));
  }
  found.push_back(CheckDeviceFlags(options));
  return found;
}

absl::Status CheckMemory(const Qwen3Config& config, size_t num_experts, WeightDtype dtype) {
  MemoryPlan plan;
  plan.expert_weight_bytes = PackedExpertBytes(config, static_cast<int>(num_experts), dtype);
  ASSIGN_OR_RETURN(const int64_t available, AvailableMemoryBytes());
  return CheckFits(plan, available);
}

std::string ModelName(const std::string& model_dir) {
  const auto path = std::filesystem::path(model_dir).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

LoadProgress LogProgress(const ShutdownSignals& signals) {
  return [&signals, next_percent = 10](size_t done, size_t total) mutable {
    const int percent = static_cast<int>(100.0 * static_cast<double>(done) / total);
    if (percent >= next_percent) {
      LOG_INFO("loaded {} % of {} MB of experts", percent, total / 1'000'000);
      next_percent = percent / 10 * 10 + 10;
    }
    return !signals.Requested();
  };
}

absl::StatusOr<std::unique_ptr<ExpertRunner>> LoadRunner(
    const ShardOptions& options, const Qwen3Config& config, const std::vector<int>& experts,
    WeightDtype dtype, const Device& device, const OpenDeviceExperts& open_device,
    const ShutdownSignals& signals, std::string* fingerprint) {
  const bool on_cpu = options.device == "cpu";
  if (!on_cpu && !open_device) {
    return absl::FailedPreconditionError(
        absl::StrCat("device is \"", options.device,
                     "\", this build runs on \"cpu\" alone: build with a CUDA toolkit "
                     "(-DCONCLAVE_CUDA=ON)"));
  }
  if (on_cpu) RETURN_IF_ERROR(CheckMemory(config, experts.size(), dtype));
  std::unique_ptr<Checkpoint> checkpoint;
  *fingerprint = DummyFingerprint(config);
  if (options.load_format != "dummy") {
    ASSIGN_OR_RETURN(checkpoint, Checkpoint::Open(options.model));
    ASSIGN_OR_RETURN(*fingerprint, Fingerprint(*checkpoint, config));
  }
  if (!on_cpu) {
    return open_device({.device = options.device,
                        .config = &config,
                        .checkpoint = checkpoint.get(),
                        .expert_ids = experts,
                        .memory_utilization = options.gpu_memory_utilization,
                        .deterministic = options.deterministic,
                        .say = [](absl::string_view text) { LOG_INFO("{}", std::string(text)); },
                        .progress = LogProgress(signals)});
  }
  return ExpertRunner::Load(*checkpoint, config, experts, dtype, device, LogProgress(signals));
}

absl::StatusOr<std::unique_ptr<NcclApi>> OpenNcclOn(const std::string& device) {
#if defined(CONCLAVE_HAVE_NCCL)
  return cuda::OpenNccl(device);
#else
  return absl::FailedPreconditionError(
      absl::StrCat("device is \"", device, "\", this program was built without NCCL"));
#endif
}

absl::Status Run(const ShardOptions& options, const OpenDeviceExperts& open_device) {
  ASSIGN_OR_RETURN(const std::vector<int> cpus, PlaceProcess(options.placement));
  ShutdownSignals signals;
  ASSIGN_OR_RETURN(const CpuIsa isa, ParseCpuIsa(options.cpu_isa));
  ASSIGN_OR_RETURN(const Qwen3Config config, LoadQwen3Config(options.model));
  ASSIGN_OR_RETURN(const std::vector<int> experts, ChooseExperts(options, config));
  ASSIGN_OR_RETURN(const WeightDtype dtype, ChooseWeightDtype(options.weight_dtype, config));
  ThreadPool pool(options.threads > 0 ? options.threads : static_cast<int>(cpus.size()),
                  ThreadCpus(options.placement, cpus));
  LOG_INFO("model {}, experts {} of {} in {}, {} threads on cpus {}, {}", options.model,
           FormatExpertList(experts), config.num_experts, std::string(WeightDtypeName(dtype)),
           pool.num_threads(), FormatIdList(cpus), std::string(CpuIsaName(isa)));

  Metrics metrics;
  ASSIGN_OR_RETURN(const HostPort metrics_listen, ParseHostPort(options.metrics_listen));
  ASSIGN_OR_RETURN(const int metrics_port, metrics.Serve(metrics_listen.host, metrics_listen.port));
  ASSIGN_OR_RETURN(const TransportChoice transports,
                   ChooseTransports(options.expert_transport, options.shared_memory));
  ASSIGN_OR_RETURN(
      const std::unique_ptr<NcclTransport> nccl,
      OpenNcclTransport(transports.nccl, [&options] { return OpenNcclOn(options.device); }));
  ShardHost shard(&metrics, config, transports.shared_memory, nccl.get());  // before its server
  ServerOptions server_options;
  server_options.listen = options.listen;
  server_options.services = {shard.service()};
  server_options.traffic = Traffic::kTensors;
  server_options.tls_cert_file = options.tls_cert_file;
  server_options.tls_key_file = options.tls_key_file;
  ASSIGN_OR_RETURN(const std::unique_ptr<ServerRunner> server, ServerRunner::Start(server_options));
  PrintListening({{"grpc", server->address()},
                  {"metrics", FormatHostPort(metrics_listen.host, metrics_port)}});

  std::string fingerprint;
  absl::StatusOr<std::unique_ptr<ExpertRunner>> loaded = LoadRunner(
      options, config, experts, dtype, Device{isa, &pool}, open_device, signals, &fingerprint);
  if (absl::IsCancelled(loaded.status())) return absl::OkStatus();
  if (!loaded.ok()) return loaded.status();
  const size_t megabytes = (*loaded)->weight_bytes() / 1'000'000;
  shard.Serve(ModelName(options.model), fingerprint, *std::move(loaded),
              [&signals](const absl::Status& failure) { signals.Fail(failure); });
  server->SetServing(true);
  PrintReady();
  LOG_INFO("serving {} MB of experts on {}", megabytes, server->address());

  signals.Wait();
  server->SetServing(false);
  shard.BeginDrain();
  const absl::Status failure = signals.failure();
  server->DrainAndStop(failure.ok() ? absl::Seconds(options.drain_seconds)
                                    : limits::kLostDeviceDrain);
  return failure;
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  conclave::ShardOptions options;
  CLI::App app("Hosts experts of a Qwen3 mixture-of-experts model for Conclave's workers.");
  conclave::AddFlags(&app, &options);
  const auto check = [&options] { return conclave::CheckFlags(options); };
  const std::optional<int> end = conclave::ParseFlags(
      app, "conclave-expert-shard", "CONCLAVE_EXPERT_SHARD", conclave::Groups(), check, argc, argv);
  if (end.has_value()) return *end;
  conclave::OpenDeviceExperts open_device;  // empty: a build for the CPU alone
#if defined(CONCLAVE_HAVE_CUDA)
  open_device = conclave::OpenCudaExperts;
#endif
  const absl::Status status = conclave::Run(options, open_device);
  if (status.ok()) return 0;
  std::cerr << "conclave-expert-shard: " << status.ToString() << std::endl;
  return 1;
}
