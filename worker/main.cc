// conclave-worker: attention, KV cache and token generation of one Qwen3 checkpoint.

#include <CLI/CLI.hpp>
#include <iostream>
#include <string>

#include "common/limits.h"
#include "common/log.h"
#include "worker/worker_process.h"

int main(int argc, char** argv) {
  conclave::WorkerProcessOptions options;
  std::string log_level = "info";
  double shard_wait_seconds = absl::ToDoubleSeconds(options.runtime.shard_wait);
  double drain_seconds = absl::ToDoubleSeconds(options.drain);
  CLI::App app{
      "conclave-worker: runs attention and generates tokens for one Qwen3 checkpoint. Experts of a "
      "mixture-of-experts model run inside it, or on the shards named with --shards."};
  app.add_option("--model", options.runtime.model_dir, "Directory of the checkpoint")->required();
  app.add_option("--listen", options.listen, "gRPC address; port 0 picks a free one")
      ->capture_default_str();
  app.add_option("--metrics_listen", options.metrics_listen, "Address of /metrics (HTTP)")
      ->capture_default_str();
  app.add_option("--shards", options.runtime.shards,
                 "Expert shards as gRPC targets, separated by commas; none: experts in process")
      ->delimiter(',');
  app.add_option("--local_experts", options.runtime.local_experts,
                 "Experts to run in process beside --shards, as 0-31,40");
  app.add_option("--threads", options.runtime.threads,
                 "Compute threads; 0: one for each CPU it may use")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--cpu_isa", options.runtime.cpu_isa, "auto, plain, avx2, avx512 or avx512_bf16")
      ->capture_default_str();
  app.add_option("--weight_dtype", options.runtime.weight_dtype,
                 "How weights are kept: auto (as in the checkpoint), bf16, int8 or int4; the same "
                 "as the shards'")
      ->capture_default_str();
  app.add_option("--cpus", options.placement.cpus, "CPUs to run on, as 0-15,32-47");
  app.add_option("--numa_node", options.placement.numa_node,
                 "NUMA node whose CPUs and memory to use");
  app.add_option("--kv_cache_tokens", options.runtime.kv_cache_tokens,
                 "Tokens the KV cache holds; 0: a quarter of the free memory")
      ->check(CLI::NonNegativeNumber)
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
  app.add_option("--shard_wait_seconds", shard_wait_seconds,
                 "How long requests wait for a lost expert shard before they fail")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--drain_seconds", drain_seconds, "How long SIGTERM lets accepted requests run")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--log_level", log_level, "debug, info, warning or error")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  options.runtime.shard_wait = absl::Seconds(shard_wait_seconds);
  options.drain = absl::Seconds(drain_seconds);

  absl::Status status = conclave::InitLog("worker", log_level);
  if (status.ok()) status = conclave::RunWorkerProcess(options);
  if (!status.ok()) {
    std::cerr << "conclave-worker: " << status.message() << std::endl;
    return 1;
  }
  return 0;
}
