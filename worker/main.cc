// conclave-worker: attention, KV cache and token generation of one Qwen3 checkpoint.

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/cpu_placement.h"
#include "common/flags.h"
#include "common/limits.h"
#include "common/log.h"
#include "kernels/device.h"
#include "model/expert_placement.h"
#include "rpc/address.h"
#include "rpc/name_resolver.h"
#include "rpc/transport_choice.h"
#include "worker/worker_process.h"

#if defined(CONCLAVE_HAVE_CUDA)
#include "worker/cuda/open_cuda_decoder.h"
#endif
#if defined(CONCLAVE_HAVE_NCCL)
#include "kernels/cuda/nccl.h"
#endif

namespace {

std::vector<conclave::FlagGroup> Groups() {
  return {
      {"Model", {"--model"}},
      {"Network", {"--listen", "--metrics_listen"}},
      {"Experts",
       {"--shards", "--local_experts", "--shard_index", "--num_shards", "--expert_transport",
        "--shared_memory", "--nccl_dispatch_dtype", "--micro_batch", "--shard_wait_seconds"}},
      {"Compute",
       {"--device", "--threads", "--cpu_isa", "--weight_dtype", "--cpus", "--numa_node",
        "--load_format", "--gpu_memory_utilization", "--deterministic", "--programmatic_launch"}},
      {"Load",
       {"--kv_cache_tokens", "--prefix_cache", "--max_running", "--max_waiting",
        "--max_step_tokens", "--drain_seconds"}},
      {"Logs", {"--log_level", "--log_format"}}};
}

}  // namespace

int main(int argc, char** argv) {
  conclave::WorkerProcessOptions options;
  std::string log_level = "info";
  std::string log_format = "text";
  double shard_wait_seconds = absl::ToDoubleSeconds(options.runtime.shard_wait);
  std::string expert_transport = "auto";
  std::string shared_memory = "auto";
  std::string nccl_dispatch_dtype = "bf16";
  double drain_seconds = absl::ToDoubleSeconds(options.drain);
  CLI::App app{
      "conclave-worker: runs attention and generates tokens for one Qwen3 checkpoint. Experts of a "
      "mixture-of-experts model run inside it, or on the shards named with --shards."};
  app.add_option("--model", options.runtime.model_dir, "Directory of the checkpoint")->required();
  app.add_option("--listen", options.listen, "HOST:PORT of gRPC; port 0 picks a free one")
      ->capture_default_str();
  app.add_option("--metrics_listen", options.metrics_listen,
                 "HOST:PORT of /metrics (HTTP); port 0 picks a free one")
      ->capture_default_str();
  app.add_option(
         "--shards", options.runtime.shards,
         "Expert shards as gRPC targets, separated by commas; dns:///NAME:PORT: a shard at each "
         "of the name's addresses, which is asked for again every 5 seconds; none: experts in "
         "process")
      ->delimiter(',');
  conclave::ExpertChoice& local_experts = options.runtime.local_experts;
  app.add_option("--local_experts", local_experts.list,
                 "Experts to run in process beside --shards, as 0-31,40, and to serve to other "
                 "workers; --shards may name this worker too, which leaves itself alone");
  app.add_option("--shard_index", local_experts.shard_index,
                 "The same with the experts of this shard of --num_shards");
  app.add_option("--num_shards", local_experts.num_shards,
                 "Equal parts that the experts are divided into, in rising order");
  app.add_option("--threads", options.runtime.threads,
                 "Compute threads; 0: one for each CPU it may use")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--cpu_isa", options.runtime.cpu_isa,
                 "auto, plain, avx2, avx512, avx512_bf16 or amx")
      ->capture_default_str();
  app.add_option("--weight_dtype", options.runtime.weight_dtype,
                 "How weights are kept: auto (as in the checkpoint), bf16, int8 or int4; the same "
                 "as the shards'")
      ->check(CLI::IsMember({"auto", "bf16", "fp8", "int8", "int4"}))
      ->capture_default_str();
  app.add_option("--cpus", options.placement.cpus, "CPUs to run on, as 0-15,32-47");
  app.add_option("--numa_node", options.placement.numa_node,
                 "NUMA node whose CPUs and memory to use")
      ->check(CLI::Range(0, 1023));
  app.add_option("--device", options.runtime.device,
                 "Where the model runs: cpu, cuda or cuda:N (the N-th GPU)")
      ->capture_default_str();
  app.add_option("--load_format", options.runtime.load_format,
                 "auto: the checkpoint; dummy: made-up weights of config.json's shapes, on a GPU")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  app.add_option("--gpu_memory_utilization", options.runtime.gpu_memory_utilization,
                 "Share of the GPU's memory for weights, workspace and KV cache")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  app.add_option("--deterministic", options.runtime.deterministic,
                 "true: a request's tokens do not depend on the batch it ran in; false, on a GPU: "
                 "large products by cuBLASLt, which must be there, and do depend on it")
      ->capture_default_str();
  app.add_option(
         "--programmatic_launch", options.runtime.programmatic_launch,
         "On Hopper: launch a kernel while the one before it ends; true or false (no GPU has "
         "run it yet)")
      ->capture_default_str();
  app.add_option(
         "--kv_cache_tokens", options.runtime.kv_cache_tokens,
         "Tokens the KV cache holds; 0: a quarter of the free memory, on a GPU all that is left")
      ->check(CLI::Range(int64_t{0}, conclave::limits::kMaxKvCacheTokens))
      ->capture_default_str();
  app.add_option("--max_running", options.runtime.max_running, "Sequences computed at a time")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--max_waiting", options.runtime.max_waiting, "Sequences queued beyond those")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  app.add_option("--max_step_tokens", options.runtime.max_step_tokens,
                 "Tokens of one forward pass: the size of a prefill chunk")
      ->check(CLI::Range(1, conclave::limits::kMaxStepTokens))
      ->capture_default_str();
  app.add_option("--prefix_cache", options.runtime.prefix_cache,
                 "Keep the KV blocks of finished requests until memory is needed: a prompt that "
                 "begins with the same tokens skips them; true or false")
      ->capture_default_str();
  app.add_option("--shard_wait_seconds", shard_wait_seconds,
                 "How long requests wait for a lost expert shard before they fail")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_option(
         "--expert_transport", expert_transport,
         "How frames go to shards of this host: auto (the best that both have: nccl between "
         "GPUs, then shared_memory, then grpc), nccl (the same, but do not start without "
         "it), shared_memory (no nccl), or grpc; shards of other hosts are reached by grpc")
      ->check(CLI::IsMember({"auto", "nccl", "shared_memory", "grpc"}))
      ->capture_default_str();
  app.add_option("--nccl_dispatch_dtype", nccl_dispatch_dtype,
                 "Rows sent to shards over NCCL: bf16, or fp8, which halves their bytes and gives "
                 "other tokens than bf16 does")
      ->check(CLI::IsMember({"bf16", "fp8"}))
      ->capture_default_str();
  app.add_option(
         "--shared_memory", shared_memory,
         "auto: frames to shards of this host may go through shared memory, and the headers "
         "of NCCL's do; off: all by gRPC")
      ->check(CLI::IsMember({"auto", "off"}))
      ->capture_default_str();
  app.add_option(
         "--micro_batch", options.runtime.micro_batch,
         "auto: a step is computed in two halves, attention of one while the experts of the "
         "other are at the shards, where that was measured to be faster; off: never; on: "
         "always")
      ->check(CLI::IsMember({"auto", "off", "on"}))
      ->capture_default_str();
  app.add_option("--drain_seconds", drain_seconds, "How long SIGTERM lets accepted requests run")
      ->check(CLI::Range(0.0, conclave::limits::kMaxDrainSeconds))
      ->capture_default_str();
  app.add_option("--log_level", log_level, "debug, info, warning or error")->capture_default_str();
  app.add_option("--log_format", log_format, "text for people, json: one object a line")
      ->capture_default_str();
  const auto check = [&]() -> std::vector<absl::Status> {
    std::vector<absl::Status> checks = {
        conclave::InitLog("worker", log_level, log_format),
        conclave::ForFlag("--listen", conclave::CheckListenAddress(options.listen)),
        conclave::ForFlag("--metrics_listen",
                          conclave::ParseHostPort(options.metrics_listen).status()),
        conclave::ChooseTransports(expert_transport, shared_memory).status(),
        conclave::ForFlag("--cpu_isa", conclave::ParseCpuIsa(options.runtime.cpu_isa).status()),
        conclave::ForFlag("--device", conclave::CheckDeviceName(options.runtime.device)),
        conclave::ForFlag("--cpus or --numa_node", conclave::CheckPlacement(options.placement)),
        conclave::CheckDeviceFlags(options.runtime)};
    for (absl::Status& wrong : conclave::CheckExpertChoice(local_experts, "--local_experts")) {
      checks.push_back(std::move(wrong));
    }
    for (const std::string& shard : options.runtime.shards) {
      checks.push_back(conclave::ForFlag("--shards", conclave::CheckPeerTarget(shard)));
    }
    return checks;
  };
  const std::optional<int> end =
      conclave::ParseFlags(app, "conclave-worker", "CONCLAVE_WORKER", Groups(), check, argc, argv);
  if (end.has_value()) return *end;
  options.runtime.shard_wait = absl::Seconds(shard_wait_seconds);
  options.drain = absl::Seconds(drain_seconds);
  options.runtime.transports = *conclave::ChooseTransports(expert_transport, shared_memory);
  options.runtime.nccl_fp8_dispatches = nccl_dispatch_dtype == "fp8";
#if defined(CONCLAVE_HAVE_CUDA)
  options.runtime.open_device = conclave::OpenCudaDecoder;
#endif
#if defined(CONCLAVE_HAVE_NCCL)
  options.runtime.open_nccl = [](const std::string& device) {
    return conclave::cuda::OpenNccl(device);
  };
#endif

  const absl::Status status = conclave::RunWorkerProcess(options);
  if (!status.ok()) {
    std::cerr << "conclave-worker: " << status.message() << std::endl;
    return 1;
  }
  return 0;
}
