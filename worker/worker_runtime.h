#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/limits.h"
#include "common/metrics.h"
#include "common/thread_pool.h"
#include "common/weight_dtype.h"
#include "expert_shard/expert_runner.h"
#include "kernels/device.h"
#include "model/expert_placement.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"
#include "proto/conclave/v1/model.pb.h"
#include "rpc/transport_choice.h"
#include "text/vocabulary.h"
#include "worker/decoder.h"
#include "worker/device_decoder.h"
#include "worker/engine.h"
#include "worker/expert_exchange.h"
#include "worker/kv_cache.h"
#include "worker/weights.h"
#include "worker/worker_metrics.h"

namespace conclave {

struct WorkerRuntimeOptions {
  std::string model_dir;
  std::vector<std::string> shards;  // gRPC targets; empty: every expert in process
  // In process, beside the shards, and served to other workers. The shards may be named with this
  // worker among them: it finds out and leaves itself alone.
  ExpertChoice local_experts;
  int threads = 0;  // 0: one for each CPU it may use
  std::string cpu_isa = "auto";
  std::string weight_dtype = "auto";    // as ChooseWeightDtype reads it
  std::vector<int> cpus;                // the pool's threads stay on these; empty: on any
  std::string device = "cpu";           // or what open_device takes
  std::string load_format = "auto";     // "dummy": made-up weights, only config.json is read
  double gpu_memory_utilization = 0.9;  // with a device: the share of its memory to use
  bool deterministic = true;            // with a device: as of DeviceDecoderRequest
  bool programmatic_launch = false;     // with a GPU: kernels begin while the ones before them end
  OpenDeviceDecoder open_device;        // empty: a build for the CPU alone
  // As of EngineOptions; set by the process.
  std::function<void(const absl::Status&)> on_device_failure;
  int64_t kv_cache_tokens = 0;  // 0: what a quarter of the free memory holds
  int max_running = limits::kDefaultMaxRunningSequences;
  int max_waiting = limits::kDefaultMaxWaitingSequences;
  int max_step_tokens = limits::kDefaultMaxStepTokens;
  bool prefix_cache = true;
  absl::Duration shard_wait = limits::kDefaultShardWait;
  TransportChoice transports;  // with shards of this host that agree
  // NCCL of the GPU that `device` names; empty: this build has none.
  std::function<absl::StatusOr<std::unique_ptr<NcclApi>>(const std::string& device)> open_nccl;
  bool nccl_fp8_dispatches = false;
  std::string micro_batch = "auto";  // as ParseMicroBatchMode reads it
};

// InvalidArgument for options of a device that contradict each other: what can be said of them
// before the model is read.
absl::Status CheckDeviceFlags(const WorkerRuntimeOptions& options);

// Everything of a worker but its gRPC door: the loaded model, its experts and the engine, built
// bottom-up and owned here.
class WorkerRuntime {
 public:
  // Reads configs and checks the checkpoint's tensors; loads no weight. Errors: InvalidArgument (an
  // option), NotFound (no such model), DataLoss (the checkpoint).
  static absl::StatusOr<std::unique_ptr<WorkerRuntime>> Open(const WorkerRuntimeOptions& options);

  // Ends a layer that waits for a lost shard, then joins the engine's thread.
  ~WorkerRuntime();

  const v1::ModelInfo& model() const { return model_; }
  const Qwen3Config& config() const { return config_; }

  // Loads the weights, connects the experts and starts the engine. Call once; `metrics` must
  // outlive this. `own_placement_epoch` is what this process's own ExpertShard will describe itself
  // with, 0 without one. Errors: DataLoss, ResourceExhausted (memory, with the arithmetic).
  absl::Status Load(Metrics& metrics, const std::function<void(absl::string_view)>& progress,
                    uint64_t own_placement_epoch = 0);

  Engine& engine() { return *engine_; }
  NcclTransport* nccl() { return nccl_.get(); }         // null: not used
  ExpertExchange* experts() { return experts_.get(); }  // null for a dense model
  bool has_local_experts() const { return !local_experts_.empty(); }

  // Experts of options.local_experts are for other workers too: a runner of its own for their
  // dispatches, after Load. Null: this worker serves nobody else.
  std::unique_ptr<ExpertRunner> TakeServedExperts() { return std::move(served_experts_); }
  bool serves_experts() const { return options_.local_experts.IsGiven(); }
  const std::string& fingerprint() const { return fingerprint_; }  // of the checkpoint

 private:
  explicit WorkerRuntime(WorkerRuntimeOptions options) : options_(std::move(options)) {}

  // Tokens the KV cache holds, a multiple of the block.
  absl::StatusOr<int64_t> KvTokens() const;
  // InvalidArgument or FailedPrecondition if this build cannot run what the options ask for.
  absl::Status CheckDevice() const;
  absl::Status OpenNccl();
  // Decoder, weights, KV cache and in-process experts on the CPU; returns the KV blocks.
  absl::StatusOr<int64_t> LoadOnCpu(Metrics& metrics,
                                    const std::function<void(absl::string_view)>& progress);
  // The same on options_.device.
  absl::StatusOr<int64_t> LoadOnDevice(Metrics& metrics,
                                       const std::function<void(absl::string_view)>& progress);
  bool on_cpu() const { return options_.device == "cpu"; }
  // Which experts run in this process; InvalidArgument if none is elsewhere and some are missing.
  absl::StatusOr<std::vector<int>> LocalExperts() const;
  bool is_dummy() const { return options_.load_format == "dummy"; }
  absl::Status LoadExperts(Metrics& metrics,
                           const std::function<void(absl::string_view)>& progress);

  const WorkerRuntimeOptions options_;
  Qwen3Config config_;
  WeightDtype weight_dtype_ = WeightDtype::kBf16;
  v1::ModelInfo model_;
  std::string fingerprint_;
  uint64_t own_placement_epoch_ = 0;
  std::vector<int> local_experts_;        // rising
  std::optional<Vocabulary> vocabulary_;  // empty: a checkpoint without tokenizer.json
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<ThreadPool> pool_;
  Device device_;
  WorkerWeights weights_;
  std::unique_ptr<KvCache> kv_cache_;
  std::unique_ptr<NcclTransport> nccl_;  // null: not used
  std::unique_ptr<ExpertExchange> experts_;
  std::unique_ptr<ExpertRunner> served_experts_;
  std::unique_ptr<StepDecoder> decoder_;
  std::unique_ptr<WorkerMetrics> metrics_;
  std::unique_ptr<Engine> engine_;  // last: its thread uses all of the above
};

}  // namespace conclave
