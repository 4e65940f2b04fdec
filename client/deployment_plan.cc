#include "client/deployment_plan.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "model/expert_placement.h"

namespace conclave {
namespace {

// A GPU's context, the libraries' buffers and the activations of a step.
constexpr int64_t kGpuWorkspaceBytes = int64_t{2} << 30;
// As the worker counts it, and as much for the shard beside it.
constexpr int64_t kCpuWorkspaceBytes = int64_t{1} << 30;
constexpr int kMostDevices = 256;

constexpr int kFirstPort = 50050;  // the router's; workers and shards follow

double GiB(int64_t bytes) { return std::ldexp(static_cast<double>(bytes), -30); }

absl::Status Check(const PlanQuestion& question) {
  const Qwen3Config& config = question.config;
  const int most =
      config.num_experts > 0 ? std::min(kMostDevices, config.num_experts) : kMostDevices;
  if (question.num_devices < 1 || question.num_devices > most) {
    return errors::OutOfRange(question.device.is_cpu ? "--hosts" : "--gpus", question.num_devices,
                              absl::StrCat("1..", most));
  }
  if (question.context < 1 || question.context > config.MaxContext()) {
    return errors::OutOfRange("--context", question.context,
                              absl::StrCat("1..", config.MaxContext(), ", the model's longest"));
  }
  if (question.batch < 1 || question.batch > 65536) {
    return errors::OutOfRange("--batch", question.batch, "1..65536");
  }
  if (!(question.memory_utilization > 0 && question.memory_utilization <= 1)) {
    return errors::OutOfRange("--gpu_memory_utilization", question.memory_utilization,
                              "more than 0 and at most 1");
  }
  if (!(question.hop_us >= 0 && question.hop_us <= 1e6)) {
    return errors::OutOfRange("--hop_us", question.hop_us, "0..1000000");
  }
  return absl::OkStatus();
}

// Device `idx` of `count`.
DevicePlan PlanDeviceMemory(const PlanQuestion& question, const BytesByKind& weights, int idx,
                            int count) {
  const Qwen3Config& config = question.config;
  DevicePlan device;
  if (config.num_experts > 0) device.experts = ExpertsOfShard(config.num_experts, count, idx);
  device.attention = weights.attention + weights.dense_mlp;
  device.expert_weights =
      weights.one_expert * config.NumSparseLayers() * static_cast<int64_t>(device.experts.size());
  device.other_weights = weights.gates + weights.norms + weights.embeddings;
  device.workspace = question.device.is_cpu ? kCpuWorkspaceBytes : kGpuWorkspaceBytes;
  device.usable = static_cast<int64_t>(
      std::ldexp(question.device.memory_gib * question.memory_utilization, 30));
  const int64_t left = device.usable - device.Weights() - device.workspace;
  constexpr int64_t kBlock = limits::kKvBlockTokens;
  const int64_t block_bytes = kBlock * KvBytesPerToken(config);
  device.kv_tokens = std::max<int64_t>(0, left / block_bytes) * kBlock;
  device.kv = device.kv_tokens * KvBytesPerToken(config);
  return device;
}

std::vector<DevicePlan> PlanDevices(const PlanQuestion& question, const BytesByKind& weights,
                                    int count) {
  std::vector<DevicePlan> devices;
  for (int i = 0; i < count; ++i) {
    devices.push_back(PlanDeviceMemory(question, weights, i, count));
  }
  return devices;
}

int64_t KvTokens(const std::vector<DevicePlan>& devices) {
  int64_t tokens = 0;
  for (const DevicePlan& device : devices) tokens += device.kv_tokens;
  return tokens;
}

// A sequence lives on one device, so each must hold its share of whole sequences.
absl::Status CheckFits(const PlanQuestion& question, const std::vector<DevicePlan>& devices) {
  const auto count = static_cast<int64_t>(devices.size());
  const int64_t sequences = (question.batch + count - 1) / count;
  const int64_t kv_tokens = sequences * question.context;
  for (size_t i = 0; i < devices.size(); ++i) {
    const DevicePlan& device = devices[i];
    if (device.kv_tokens >= kv_tokens) continue;
    const int64_t kv = kv_tokens * KvBytesPerToken(question.config);
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%s %d of %d needs attention %.1f + experts %.1f + embeddings, gates, norms %.1f + "
        "workspace %.1f + KV of %d x %d tokens %.1f = %.1f GiB, want at most %.1f (%.1f GiB x %g)",
        question.device.is_cpu ? "host" : "card", i, count, GiB(device.attention),
        GiB(device.expert_weights), GiB(device.other_weights), GiB(device.workspace), sequences,
        question.context, GiB(kv), GiB(device.Weights() + device.workspace + kv),
        GiB(device.usable), question.device.memory_gib, question.memory_utilization));
  }
  return absl::OkStatus();
}

int LeastDevices(const PlanQuestion& question, const BytesByKind& weights) {
  const int experts = question.config.num_experts;
  const int most = experts > 0 ? std::min(kMostDevices, experts) : kMostDevices;
  for (int count = 1; count <= most; ++count) {
    if (CheckFits(question, PlanDevices(question, weights, count)).ok()) return count;
  }
  return 0;
}

std::string ModelDir(const PlanQuestion& question) {
  return question.model_dir.empty() ? "MODEL_DIR" : question.model_dir;
}

// Several CPU servers have a process of each kind each; on one machine ports tell them apart.
struct Place {
  std::string listen, target;
};
Place PlaceOf(const PlanQuestion& question, int device, int first_port) {
  if (question.device.is_cpu && question.num_devices > 1) {
    return {absl::StrCat("0.0.0.0:", first_port), absl::StrCat("host-", device, ":", first_port)};
  }
  const std::string local = absl::StrCat("127.0.0.1:", first_port + device);
  return {local, local};
}

// For a CPU's processes: what `auto` would not choose.
std::vector<std::string> WeightDtypeFlag(const PlanQuestion& question) {
  if (question.dtype == CheckpointDtype(question.config)) return {};
  return {"--weight_dtype", std::string(WeightDtypeName(question.dtype))};
}

void Append(const std::vector<std::string>& from, std::vector<std::string>* to) {
  to->insert(to->end(), from.begin(), from.end());
}

bool HasShards(const PlanQuestion& question) {
  return question.config.num_experts > 0 && question.num_devices > 1;
}

}  // namespace

absl::StatusOr<DeploymentPlan> PlanDeployment(const PlanQuestion& question) {
  RETURN_IF_ERROR(Check(question));
  DeploymentPlan plan;
  plan.weights = question.device.is_cpu ? PackedWeightBytes(question.config, question.dtype)
                                        : StoredWeightBytes(question.config);
  plan.kv_bytes_per_token = KvBytesPerToken(question.config);
  plan.devices = PlanDevices(question, plan.weights, question.num_devices);
  plan.kv_tokens = KvTokens(plan.devices);
  plan.fits = CheckFits(question, plan.devices);
  if (!plan.fits.ok()) plan.least_devices = LeastDevices(question, plan.weights);
  std::vector<int> experts_of;
  for (const DevicePlan& device : plan.devices) {
    experts_of.push_back(static_cast<int>(device.experts.size()));
  }
  plan.wire_bytes_per_step = WireBytesPerStep(question.config, experts_of, question.batch);
  if (question.num_devices > 1) {
    const std::vector<DevicePlan> survivors =
        PlanDevices(question, plan.weights, question.num_devices - 1);
    plan.survivors_fit = CheckFits(question, survivors).ok();
    plan.survivors_kv_tokens = KvTokens(survivors);
  }
  return plan;
}

namespace {

// One process a card: a worker that runs its card's experts in place, serves them to the other
// workers, and finds the rest there.
std::vector<PlannedProcess> GpuProcesses(const PlanQuestion& question, const DeploymentPlan& plan) {
  const std::string model = ModelDir(question);
  std::vector<PlannedProcess> processes;
  std::vector<std::string> workers;
  for (int i = 0; i < question.num_devices; ++i) {
    workers.push_back(PlaceOf(question, i, kFirstPort + 1).target);
  }
  for (int i = 0; i < question.num_devices; ++i) {
    PlannedProcess worker{
        absl::StrCat("worker-", i),
        // The KV cache gets what is left: the worker measures what the plan can but estimate.
        {"conclave-worker", "--model", model, "--listen", workers[i], "--device",
         absl::StrCat("cuda:", i), "--gpu_memory_utilization",
         absl::StrCat(question.memory_utilization)}};
    if (HasShards(question)) {
      std::vector<std::string> others = workers;
      others.erase(others.begin() + i);
      Append({"--local_experts", FormatExpertList(plan.devices[i].experts), "--shards",
              absl::StrJoin(others, ",")},
             &worker.argv);
    }
    processes.push_back(std::move(worker));
  }
  processes.push_back(
      {"router",
       {"conclave-router", "--model", model, "--workers", absl::StrJoin(workers, ","), "--listen",
        absl::StrCat("127.0.0.1:", kFirstPort)}});
  return processes;
}

}  // namespace

std::vector<PlannedProcess> PlannedProcesses(const PlanQuestion& question,
                                             const DeploymentPlan& plan) {
  if (!question.device.is_cpu) return GpuProcesses(question, plan);
  const int count = question.num_devices;
  const int worker_port = kFirstPort + 1;
  const int shard_port = worker_port + 1;
  const std::string model = ModelDir(question);
  const std::vector<std::string> dtype_flag = WeightDtypeFlag(question);
  std::vector<PlannedProcess> processes;
  std::vector<std::string> shards, workers;
  for (int i = 0; i < count && HasShards(question); ++i) {
    const Place place = PlaceOf(question, i, shard_port);
    shards.push_back(place.target);
    processes.push_back({absl::StrCat("shard-", i),
                         {"conclave-expert-shard", "--model", model, "--experts",
                          FormatExpertList(plan.devices[i].experts), "--listen", place.listen}});
    Append(dtype_flag, &processes.back().argv);
  }
  for (int i = 0; i < count; ++i) {
    const Place place = PlaceOf(question, i, worker_port);
    workers.push_back(place.target);
    PlannedProcess worker{absl::StrCat("worker-", i),
                          {"conclave-worker", "--model", model, "--listen", place.listen,
                           "--kv_cache_tokens", absl::StrCat(plan.devices[i].kv_tokens)}};
    Append(dtype_flag, &worker.argv);
    if (!shards.empty()) Append({"--shards", absl::StrJoin(shards, ",")}, &worker.argv);
    processes.push_back(std::move(worker));
  }
  const bool many_hosts = count > 1;
  processes.push_back(
      {"router",
       {"conclave-router", "--model", model, "--workers", absl::StrJoin(workers, ","), "--listen",
        absl::StrCat(many_hosts ? "0.0.0.0:" : "127.0.0.1:", kFirstPort)}});
  return processes;
}

std::vector<std::string> PlannedUpCommand(const PlanQuestion& question,
                                          const DeploymentPlan& plan) {
  if (!question.device.is_cpu || question.num_devices > 1) return {};
  std::vector<std::string> up = {"conclave",          "up",
                                 "--model",           ModelDir(question),
                                 "--workers",         "1",
                                 "--shards",          "0",
                                 "--kv_cache_tokens", absl::StrCat(plan.devices.front().kv_tokens)};
  Append(WeightDtypeFlag(question), &up);
  return up;
}

}  // namespace conclave
