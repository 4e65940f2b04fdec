#include "worker/worker_runtime.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/cpu_placement.h"
#include "common/errors.h"
#include "common/id_list.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "expert_shard/expert_runner.h"
#include "expert_shard/weight_loader.h"
#include "model/expert_placement.h"
#include "model/fingerprint.h"
#include "model/memory_plan.h"
#include "model/weight_catalog.h"
#include "worker/grpc_expert_exchange.h"
#include "worker/local_expert_exchange.h"

namespace conclave {
namespace {

// Activations of a step, logits of a slice and gRPC's buffers: measured below this for every model
// on a CPU.
constexpr int64_t kWorkspaceBytes = 512LL << 20;

v1::ModelInfo MakeModelInfo(const std::string& model_dir, const Qwen3Config& config,
                            const std::string& fingerprint, WeightDtype weight_dtype) {
  v1::ModelInfo info;
  const std::filesystem::path path(model_dir);
  info.set_name((path.has_filename() ? path : path.parent_path()).filename().string());
  info.set_architecture(std::string(ArchitectureName(config.architecture)));
  info.set_fingerprint(FingerprintAs(fingerprint, weight_dtype));
  info.set_num_hidden_layers(config.num_hidden_layers);
  info.set_hidden_size(config.hidden_size);
  info.set_num_experts(config.num_experts);
  info.set_num_experts_per_tok(config.num_experts_per_tok);
  info.set_vocab_size(config.vocab_size);
  info.set_max_context(config.MaxContext());
  info.set_weight_dtype(std::string(WeightDtypeName(weight_dtype)));
  return info;
}

std::vector<int> AllExperts(int num_experts) {
  std::vector<int> all(num_experts);
  for (int i = 0; i < num_experts; ++i) all[i] = i;
  return all;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerRuntime>> WorkerRuntime::Open(
    const WorkerRuntimeOptions& options) {
  auto runtime = std::unique_ptr<WorkerRuntime>(new WorkerRuntime(options));
  ASSIGN_OR_RETURN(const CpuIsa isa, ParseCpuIsa(options.cpu_isa));
  RETURN_IF_ERROR(ParseMicroBatchMode(options.micro_batch).status());
  ASSIGN_OR_RETURN(runtime->config_, LoadQwen3Config(options.model_dir));
  const Qwen3Config& config = runtime->config_;
  ASSIGN_OR_RETURN(runtime->weight_dtype_, ChooseWeightDtype(options.weight_dtype, config));
  if (config.num_experts == 0 && (!options.shards.empty() || options.local_experts.IsGiven())) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.model_dir,
        " is a dense model: it has no experts for --shards, --local_experts or --num_shards"));
  }
  ASSIGN_OR_RETURN(runtime->local_experts_, runtime->LocalExperts());
  const std::string tokenizer_path = absl::StrCat(options.model_dir, "/tokenizer.json");
  if (std::filesystem::exists(tokenizer_path)) {
    ASSIGN_OR_RETURN(runtime->vocabulary_, LoadVocabulary(tokenizer_path));
  }
  RETURN_IF_ERROR(runtime->CheckDevice());
  if (!options.shards.empty()) RETURN_IF_ERROR(runtime->OpenNccl());
  std::string& fingerprint = runtime->fingerprint_;
  fingerprint = DummyFingerprint(config);
  if (!runtime->is_dummy()) {
    ASSIGN_OR_RETURN(runtime->checkpoint_, Checkpoint::Open(options.model_dir));
    RETURN_IF_ERROR(CheckCatalog(*runtime->checkpoint_, config));
    ASSIGN_OR_RETURN(fingerprint, Fingerprint(*runtime->checkpoint_, config));
  }
  runtime->model_ = MakeModelInfo(options.model_dir, config, fingerprint, runtime->weight_dtype_);
  ASSIGN_OR_RETURN(const std::vector<int> allowed, AllowedCpus());
  runtime->pool_ = std::make_unique<ThreadPool>(
      options.threads > 0 ? options.threads : static_cast<int>(allowed.size()), options.cpus);
  LOG_INFO("model {} in {}, {} threads on cpus {}, {}", options.model_dir,
           runtime->model_.weight_dtype(), runtime->pool_->num_threads(), FormatIdList(allowed),
           std::string(CpuIsaName(isa)));
  runtime->device_ = {isa, runtime->pool_.get()};
  return runtime;
}

absl::Status CheckDeviceFlags(const WorkerRuntimeOptions& options) {
  const bool is_dummy = options.load_format == "dummy";
  if (options.load_format != "auto" && !is_dummy) {
    return errors::OutOfRange("load_format", options.load_format, "auto or dummy");
  }
  if (options.device == "cpu" && !options.deterministic) {
    return errors::OutOfRange("deterministic on the CPU", "false", "true: it always is");
  }
  if (options.device == "cpu") {
    return !is_dummy ? absl::OkStatus()
                     : absl::InvalidArgumentError(
                           "load_format is dummy, which needs --device=cuda; for the CPU, "
                           "`conclave synth` writes a checkpoint of made-up weights");
  }
  if (!(options.gpu_memory_utilization > 0 && options.gpu_memory_utilization <= 1)) {
    return errors::OutOfRange("gpu_memory_utilization", options.gpu_memory_utilization,
                              "above 0, at most 1");
  }
  if (options.micro_batch == "on") {
    return errors::OutOfRange("micro_batch on a device", options.micro_batch, "auto or off");
  }
  if (options.weight_dtype != "auto") {
    return errors::OutOfRange("weight_dtype on a device", options.weight_dtype,
                              "auto: as in the checkpoint");
  }
  return absl::OkStatus();
}

absl::Status WorkerRuntime::CheckDevice() const {
  RETURN_IF_ERROR(CheckDeviceFlags(options_));
  if (on_cpu() || options_.open_device) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("device is \"", options_.device,
                   "\", this build runs on \"cpu\" alone: build with a CUDA toolkit "
                   "(-DCONCLAVE_CUDA=ON)"));
}

absl::Status WorkerRuntime::OpenNccl() {
  std::function<absl::StatusOr<std::unique_ptr<NcclApi>>()> open_nccl;
  if (options_.open_nccl) open_nccl = [this] { return options_.open_nccl(options_.device); };
  ASSIGN_OR_RETURN(nccl_, OpenNcclTransport(options_.transports.nccl, open_nccl));
  return absl::OkStatus();
}

WorkerRuntime::~WorkerRuntime() {
  if (experts_ != nullptr) experts_->Stop();
}

absl::StatusOr<std::vector<int>> WorkerRuntime::LocalExperts() const {
  if (config_.num_experts == 0) return std::vector<int>();
  if (!options_.local_experts.IsGiven()) {
    return options_.shards.empty() ? AllExperts(config_.num_experts) : std::vector<int>();
  }
  ASSIGN_OR_RETURN(std::vector<int> ids,
                   ChosenExperts(options_.local_experts, config_.num_experts));
  if (!options_.shards.empty()) return ids;
  std::vector<int> missing;
  for (const int expert : AllExperts(config_.num_experts)) {
    if (!std::binary_search(ids.begin(), ids.end(), expert)) missing.push_back(expert);
  }
  if (missing.empty()) return ids;
  return absl::InvalidArgumentError(absl::StrCat("local_experts is ", FormatIdList(ids),
                                                 ", want experts ", FormatIdList(missing),
                                                 " too, or --shards that hold them"));
}

absl::StatusOr<int64_t> WorkerRuntime::KvTokens() const {
  ASSIGN_OR_RETURN(const int64_t available, AvailableMemoryBytes());
  MemoryPlan plan;
  plan.worker_weight_bytes = PackedWeightBytes(config_, weight_dtype_).Worker();
  if (has_local_experts()) {
    plan.expert_weight_bytes =
        PackedExpertBytes(config_, static_cast<int>(local_experts_.size()), weight_dtype_);
  }
  plan.kv_bytes_per_token = KvBytesPerToken(config_);
  plan.workspace_bytes = kWorkspaceBytes;
  plan.kv_tokens = options_.kv_cache_tokens;
  if (plan.kv_tokens == 0) {
    const int64_t free = available - plan.TotalBytes();
    const int64_t most = int64_t{options_.max_running} * config_.MaxContext();
    plan.kv_tokens = std::min(most, std::max<int64_t>(free / 4, 0) / plan.kv_bytes_per_token);
  }
  constexpr int64_t kBlock = limits::kKvBlockTokens;
  plan.kv_tokens = std::max<int64_t>(1, (plan.kv_tokens + kBlock - 1) / kBlock) * kBlock;
  RETURN_IF_ERROR(CheckFits(plan, available));
  return plan.kv_tokens;
}

absl::Status WorkerRuntime::LoadExperts(Metrics& metrics,
                                        const std::function<void(absl::string_view)>& progress) {
  if (config_.num_experts == 0) return absl::OkStatus();
  std::unique_ptr<ExpertRunner> local;
  if (has_local_experts() && on_cpu()) {
    const auto tell = [&](size_t done, size_t total) {
      progress(absl::StrCat("experts: ", done >> 20, " of ", total >> 20, " MiB"));
      return true;
    };
    ASSIGN_OR_RETURN(local, ExpertRunner::Load(*checkpoint_, config_, local_experts_, weight_dtype_,
                                               device_, tell));
    if (serves_experts()) {
      ASSIGN_OR_RETURN(served_experts_, local->Share());
    }
  }
  if (options_.shards.empty()) {
    experts_ = std::make_unique<LocalExpertExchange>(config_, std::move(local));
    return absl::OkStatus();
  }
  GrpcExpertExchangeOptions exchange;
  exchange.shards = options_.shards;
  exchange.fingerprint = model_.fingerprint();
  exchange.weight_dtype = model_.weight_dtype();
  exchange.config = config_;
  if (!on_cpu()) exchange.experts_in_place = local_experts_;
  exchange.own_placement_epoch = own_placement_epoch_;
  exchange.shard_wait = options_.shard_wait;
  exchange.shared_memory = options_.transports.shared_memory;
  exchange.nccl = nccl_.get();
  exchange.nccl_fp8_dispatches = options_.nccl_fp8_dispatches;
  experts_ = std::make_unique<GrpcExpertExchange>(std::move(exchange), std::move(local), &metrics);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> WorkerRuntime::LoadOnCpu(
    Metrics& metrics, const std::function<void(absl::string_view)>& progress) {
  ASSIGN_OR_RETURN(const int64_t kv_tokens, KvTokens());
  ASSIGN_OR_RETURN(weights_,
                   LoadWorkerWeights(*checkpoint_, config_, weight_dtype_, pool_.get(),
                                     [&](int done, int total) {
                                       progress(absl::StrCat("layer ", done, " of ", total));
                                     }));
  RETURN_IF_ERROR(LoadExperts(metrics, progress));
  const int64_t num_blocks = kv_tokens / limits::kKvBlockTokens;
  kv_cache_ = std::make_unique<KvCache>(config_, num_blocks);
  ASSIGN_OR_RETURN(const MicroBatchMode micro_batch, ParseMicroBatchMode(options_.micro_batch));
  decoder_ = std::make_unique<Decoder>(config_, weights_, *kv_cache_, device_, experts_.get(),
                                       micro_batch);
  return num_blocks;
}

absl::StatusOr<int64_t> WorkerRuntime::LoadOnDevice(
    Metrics& metrics, const std::function<void(absl::string_view)>& progress) {
  if (!options_.shards.empty()) RETURN_IF_ERROR(LoadExperts(metrics, progress));
  ASSIGN_OR_RETURN(
      DeviceDecoder opened,
      options_.open_device({.device = options_.device,
                            .config = &config_,
                            .checkpoint = checkpoint_.get(),
                            .expert_ids = local_experts_,
                            .experts = experts_.get(),
                            .serve_experts = serves_experts(),
                            .memory_utilization = options_.gpu_memory_utilization,
                            .kv_cache_tokens = options_.kv_cache_tokens,
                            .max_running = options_.max_running,
                            .max_step_tokens = options_.max_step_tokens,
                            .programmatic_launch = options_.programmatic_launch,
                            .deterministic = options_.deterministic,
                            .progress = [&](absl::string_view text) { progress(text); }}));
  decoder_ = std::move(opened.decoder);
  served_experts_ = std::move(opened.served_experts);
  return opened.num_kv_blocks;
}

absl::Status WorkerRuntime::Load(Metrics& metrics,
                                 const std::function<void(absl::string_view)>& progress,
                                 uint64_t own_placement_epoch) {
  own_placement_epoch_ = own_placement_epoch;
  ASSIGN_OR_RETURN(const int64_t num_blocks,
                   on_cpu() ? LoadOnCpu(metrics, progress) : LoadOnDevice(metrics, progress));
  const int64_t kv_tokens = num_blocks * limits::kKvBlockTokens;
  metrics_ = std::make_unique<WorkerMetrics>(metrics);

  EngineOptions engine;
  engine.limits.max_context = std::min<int64_t>(config_.MaxContext(), kv_tokens);
  engine.limits.vocab_size = config_.vocab_size;
  engine.limits.num_ids = config_.vocab_size;
  if (vocabulary_.has_value()) {
    engine.limits.num_ids =
        std::min<int64_t>(config_.vocab_size, static_cast<int64_t>(vocabulary_->size()));
  }
  engine.num_kv_blocks = num_blocks;
  engine.max_running = options_.max_running;
  engine.max_waiting = options_.max_waiting;
  engine.max_step_tokens = options_.max_step_tokens;
  engine.prefix_cache = options_.prefix_cache;
  engine.token_bytes = [this](uint32_t id) {
    return vocabulary_.has_value() ? vocabulary_->Bytes(id) : absl::string_view();
  };
  engine.on_device_failure = options_.on_device_failure;
  model_.set_max_context(static_cast<uint32_t>(engine.limits.max_context));
  engine_ = std::make_unique<Engine>(std::move(engine), *decoder_, device_, *metrics_);
  return absl::OkStatus();
}

}  // namespace conclave
