#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/metrics.h"
#include "expert_shard/expert_runner.h"
#include "expert_shard/expert_service.h"
#include "expert_shard/shard_metrics.h"
#include "expert_shard/token_batcher.h"
#include "model/qwen3_config.h"

namespace conclave {

// conclave.v1.ExpertShard in a process: service, batcher, metrics and runner. A shard is one of
// these; so is the part of a worker that runs its experts for other workers.
class ShardHost {
 public:
  // `metrics` is borrowed. `shared_memory`, `nccl`: as of ExpertService.
  ShardHost(Metrics* metrics, const Qwen3Config& config, bool shared_memory, NcclTransport* nccl);
  ~ShardHost();  // the server has stopped
  ShardHost(const ShardHost&) = delete;
  ShardHost& operator=(const ShardHost&) = delete;

  // To be served from the start: until Serve, it answers that it is loading.
  grpc::Service* service() { return &service_; }

  // What it describes itself with: an epoch that no earlier start and no other process has, so that
  // a worker notices that this is another process than before, or that it is its own.
  uint64_t placement_epoch() const { return placement_epoch_; }

  // The experts are loaded. `fingerprint` is the checkpoint's, `on_device_failure` as of
  // TokenBatcher. Call once.
  void Serve(const std::string& model_name, const std::string& fingerprint,
             std::unique_ptr<ExpertRunner> runner,
             std::function<void(const absl::Status&)> on_device_failure);

  // As ExpertService::BeginDrain.
  void BeginDrain() { service_.BeginDrain(); }

 private:
  const Qwen3Config config_;
  const uint64_t placement_epoch_;
  ShardMetrics metrics_;
  std::unique_ptr<ExpertRunner> runner_;
  std::unique_ptr<TokenBatcher> batcher_;
  ExpertService service_;  // first to go: it uses all of the above
};

}  // namespace conclave
