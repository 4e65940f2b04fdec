#include "client/up_flags.h"

#include "common/flags.h"
#include "common/limits.h"

namespace conclave {

CLI::App* AddUpFlags(CLI::App* app, UpOptions* options) {
  CLI::App* up = app->add_subcommand(
      "up",
      "Start a whole cluster on this machine: expert shards, workers and a router. It prints every "
      "endpoint, starts again what dies, and drains and stops all on Ctrl-C; a second Ctrl-C "
      "kills.");
  up->add_option("--model", options->model, "Folder of a Qwen3 checkpoint")->required();
  up->add_option("--workers", options->workers, "Worker processes (attention, KV cache)")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  up->add_option("--shards", options->shards,
                 "Expert shard processes; 0: experts run inside each worker")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  up->add_option("--host", options->host,
                 "Address the router listens on; 0.0.0.0 for all. The rest stays on 127.0.0.1")
      ->capture_default_str();
  up->add_option("--grpc_port", options->grpc_port, "gRPC port of the router; 0: any free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  up->add_option("--http_port", options->http_port,
                 "HTTP port of the router: OpenAI's API and /metrics; 0: any free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  up->add_option("--threads", options->threads,
                 "Compute threads for the cluster; 0: one per core. The workers divide them; each "
                 "shard has as many, for workers and shards compute by turns")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  up->add_option("--kv_cache_tokens", options->kv_cache_tokens,
                 "Tokens each worker's KV cache holds; 0: the worker's default")
      ->check(CLI::Range(int64_t{0}, limits::kMaxKvCacheTokens))
      ->capture_default_str();
  up->add_option("--max_running", options->max_running,
                 "Requests a worker computes at a time; 0: the worker's default")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  up->add_option("--prefix_cache", options->prefix_cache,
                 "Workers keep KV blocks for prompts that begin alike; true or false")
      ->capture_default_str();
  up->add_option(
        "--prefill_ahead", options->prefill_ahead,
        "Idle workers compute the beginning of a conversation's next prompt; true or false")
      ->capture_default_str();
  up->add_option("--expert_transport", options->expert_transport,
                 "How workers and shards exchange rows: auto, shared_memory or grpc")
      ->check(CLI::IsMember({"auto", "shared_memory", "grpc"}))
      ->capture_default_str();
  up->add_option("--shared_memory", options->shared_memory,
                 "auto: workers and shards exchange rows through shared memory; off: over gRPC")
      ->check(CLI::IsMember({"auto", "off"}))
      ->capture_default_str();
  up->add_option(
        "--micro_batch", options->micro_batch,
        "auto: workers compute a step in two halves, attention of one while the experts of "
        "the other are at the shards, where that was measured to be faster; off: never; on: "
        "always")
      ->check(CLI::IsMember({"auto", "off", "on"}))
      ->capture_default_str();
  up->add_option("--cpu_isa", options->cpu_isa, "Instructions of the kernels; auto: the best here")
      ->check(CLI::IsMember({"auto", "plain", "avx2", "avx512", "avx512_bf16", "amx"}))
      ->capture_default_str();
  up->add_option("--weight_dtype", options->weight_dtype,
                 "How workers and shards keep the weights: auto (as in the checkpoint), bf16, int8 "
                 "(half of BF16's memory) or int4 (a quarter)")
      ->check(CLI::IsMember({"auto", "bf16", "fp8", "int8", "int4"}))
      ->capture_default_str();
  up->add_option("--numa_nodes", options->numa_nodes,
                 "NUMA nodes, as 0,1: workers and shards take turns on their CPUs and memory")
      ->delimiter(',')
      ->check(CLI::Range(0, 1023));
  up->add_option("--model_name", options->model_name,
                 "What clients write as \"model\" (default: the folder's name)");
  up->add_option("--chat_template", options->chat_template,
                 "How messages become a prompt; auto: as the checkpoint says")
      ->check(CLI::IsMember({"auto", "qwen3", "instruct-2507", "thinking-2507"}))
      ->capture_default_str();
  up->add_option("--log_dir", options->log_dir,
                 "Folder for one log file per process (default: all on standard error)");
  up->add_option("--log_level", options->log_level, "Lowest level the processes log")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
  up->add_option("--log_format", options->log_format, "text for people, json: one object a line")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  up->add_option("--drain_seconds", options->drain_seconds,
                 "Seconds that requests get to finish when the cluster stops")
      ->check(CLI::Range(0, static_cast<int>(limits::kMaxDrainSeconds)))
      ->capture_default_str();
  up->add_option("--ready_seconds", options->ready_seconds,
                 "Seconds within which every process must be ready, loading included")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  up->add_option("--bin_dir", options->bin_dir)->group("");  // hidden: for tests
  PrepareFlags(*up, kUpVariables,
               {{"Model", {"--model", "--model_name", "--chat_template"}},
                {"Processes", {"--workers", "--shards", "--ready_seconds", "--drain_seconds"}},
                {"Network", {"--host", "--grpc_port", "--http_port"}},
                {"Compute",
                 {"--threads", "--cpu_isa", "--weight_dtype", "--numa_nodes", "--kv_cache_tokens",
                  "--max_running", "--prefix_cache", "--prefill_ahead", "--expert_transport",
                  "--shared_memory", "--micro_batch"}},
                {"Logs", {"--log_dir", "--log_level", "--log_format"}}});
  return up;
}

}  // namespace conclave
