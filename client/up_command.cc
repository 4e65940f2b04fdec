#include "client/up_command.h"

#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "client/child_process.h"
#include "common/errors.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

// Between a server's own drain deadline and our SIGKILL: what it needs to close and free.
constexpr absl::Duration kExitSlack = absl::Seconds(5);

using Arguments = std::vector<std::string>;

Arguments CommonArguments(const UpOptions& options, const std::string& program) {
  return {absl::StrCat(options.bin_dir, "/", program),
          "--model",
          options.model,
          "--log_level",
          options.log_level,
          "--log_format",
          options.log_format,
          "--drain_seconds",
          absl::StrCat(options.drain_seconds)};
}

void Append(Arguments& arguments, const std::string& flag, const std::string& value) {
  arguments.insert(arguments.end(), {flag, value});
}

// What workers and shards have in common; `number` counts the processes of a tier.
void AppendCompute(Arguments& arguments, const UpOptions& options, int threads, int number) {
  Append(arguments, "--threads", absl::StrCat(threads));
  Append(arguments, "--cpu_isa", options.cpu_isa);
  Append(arguments, "--weight_dtype", options.weight_dtype);
  if (options.numa_nodes.empty()) return;
  const size_t turn = static_cast<size_t>(number) % options.numa_nodes.size();
  Append(arguments, "--numa_node", absl::StrCat(options.numa_nodes[turn]));
}

ProcessTier PlanShards(const UpOptions& options, int threads) {
  ProcessTier tier;
  for (int shard = 0; shard < options.shards; ++shard) {
    ProcessSpec spec;
    spec.name = absl::StrCat("shard-", shard);
    spec.argv = CommonArguments(options, "conclave-expert-shard");
    Append(spec.argv, "--shard_index", absl::StrCat(shard));
    Append(spec.argv, "--num_shards", absl::StrCat(options.shards));
    Append(spec.argv, "--expert_transport", options.expert_transport);
    Append(spec.argv, "--shared_memory", options.shared_memory);
    AppendCompute(spec.argv, options, threads, shard);
    tier.processes.push_back(std::move(spec));
  }
  return tier;
}

ProcessTier PlanWorkers(const UpOptions& options, int threads) {
  ProcessTier tier;
  if (options.shards > 0) tier.targets_flag = "--shards";
  for (int worker = 0; worker < options.workers; ++worker) {
    ProcessSpec spec;
    spec.name = absl::StrCat("worker-", worker);
    spec.argv = CommonArguments(options, "conclave-worker");
    Append(spec.argv, "--expert_transport", options.expert_transport);
    Append(spec.argv, "--shared_memory", options.shared_memory);
    Append(spec.argv, "--micro_batch", options.micro_batch);
    AppendCompute(spec.argv, options, threads, worker);
    if (options.kv_cache_tokens > 0) {
      Append(spec.argv, "--kv_cache_tokens", absl::StrCat(options.kv_cache_tokens));
    }
    if (options.max_running > 0) {
      Append(spec.argv, "--max_running", absl::StrCat(options.max_running));
    }
    if (!options.prefix_cache) Append(spec.argv, "--prefix_cache", "false");
    tier.processes.push_back(std::move(spec));
  }
  return tier;
}

ProcessTier PlanRouter(const UpOptions& options) {
  ProcessSpec spec;
  spec.name = "router";
  spec.argv = CommonArguments(options, "conclave-router");
  Append(spec.argv, "--chat_template", options.chat_template);
  if (!options.model_name.empty()) Append(spec.argv, "--model_name", options.model_name);
  if (!options.prefill_ahead) Append(spec.argv, "--prefill_ahead", "false");
  spec.host = options.host;
  spec.grpc_port = options.grpc_port;
  spec.http_flag = "--http_listen";
  spec.http_port = options.http_port;
  return ProcessTier{.targets_flag = "--workers", .processes = {std::move(spec)}};
}

absl::Status CheckPrograms(const UpOptions& options) {
  for (const char* program : {"conclave-expert-shard", "conclave-worker", "conclave-router"}) {
    const std::string path = absl::StrCat(options.bin_dir, "/", program);
    if (access(path.c_str(), X_OK) != 0) {
      return absl::NotFoundError(
          absl::StrCat(path, " cannot be run (", strerror(errno),
                       "); the servers belong in the folder of the conclave program"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

ThreadShare DivideThreads(int threads, int workers) {
  ThreadShare share;
  share.worker = std::max(1, threads / std::max(1, workers));
  share.shard = std::max(1, threads);
  return share;
}

absl::StatusOr<std::vector<ProcessTier>> PlanProcesses(const UpOptions& options,
                                                       const Qwen3Config& config) {
  if (config.num_experts == 0 && options.shards > 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shards is ", options.shards, ", want 0: ", options.model, " is a dense model (",
        ArchitectureName(config.architecture), ") and has no experts to give to shards"));
  }
  if (options.shards > config.num_experts) {
    return errors::OutOfRange("shards", options.shards,
                              absl::StrCat("0..", config.num_experts, ", the model's experts"));
  }
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const ThreadShare share =
      DivideThreads(options.threads > 0 ? options.threads : cores, options.workers);
  std::vector<ProcessTier> tiers;
  if (options.shards > 0) tiers.push_back(PlanShards(options, share.shard));
  tiers.push_back(PlanWorkers(options, share.worker));
  tiers.push_back(PlanRouter(options));
  return tiers;
}

absl::Status CheckPortIsFree(const std::string& host, int port) {
  if (port == 0) return absl::OkStatus();
  const std::string address = absl::StrCat(host, ":", port);
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (code != 0) {
    return absl::InvalidArgumentError(absl::StrCat("host is \"", host, "\": ", gai_strerror(code)));
  }
  absl::Cleanup free_found = [found] { freeaddrinfo(found); };
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::InternalError(absl::StrCat("socket: ", strerror(errno)));
  absl::Cleanup close_fd = [fd] { close(fd); };
  // As servers do: connections of an earlier run that linger must not look like a server.
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address, ": ", strerror(errno)));
  }
  return absl::OkStatus();
}

absl::Status RunUp(const UpOptions& given) {
  UpOptions options = given;
  if (options.bin_dir.empty()) {
    ASSIGN_OR_RETURN(options.bin_dir, ExecutableDir());
  }
  ASSIGN_OR_RETURN(const Qwen3Config config, LoadQwen3Config(options.model));
  SupervisorOptions supervisor_options;
  ASSIGN_OR_RETURN(supervisor_options.tiers, PlanProcesses(options, config));
  RETURN_IF_ERROR(CheckPrograms(options));
  RETURN_IF_ERROR(CheckPortIsFree(options.host, options.grpc_port));
  RETURN_IF_ERROR(CheckPortIsFree(options.host, options.http_port));
  if (!options.log_dir.empty()) {
    std::error_code error;
    std::filesystem::create_directories(options.log_dir, error);
    if (error) {
      return absl::InvalidArgumentError(
          absl::StrCat("log_dir is \"", options.log_dir, "\": ", error.message()));
    }
  }
  supervisor_options.log_dir = options.log_dir;
  supervisor_options.json_lines = options.log_format == "json";
  supervisor_options.ready_deadline = absl::Seconds(options.ready_seconds);
  supervisor_options.drain_deadline = absl::Seconds(options.drain_seconds) + kExitSlack;
  return Supervisor(std::move(supervisor_options), std::cout, std::cerr).Run();
}

}  // namespace conclave
