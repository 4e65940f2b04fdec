#include "expert_shard/shard_host.h"

#include <random>
#include <utility>

#include "absl/time/clock.h"
#include "expert_shard/dispatch_rules.h"

namespace conclave {
namespace {

uint64_t NewPlacementEpoch() {
  std::random_device random;
  const uint64_t high = random();
  return ((high << 32) | random()) ^ static_cast<uint64_t>(absl::ToUnixNanos(absl::Now()));
}

}  // namespace

ShardHost::ShardHost(Metrics* metrics, const Qwen3Config& config, bool shared_memory,
                     NcclTransport* nccl)
    : config_(config),
      placement_epoch_(NewPlacementEpoch()),
      metrics_(metrics, config),
      service_(&metrics_, shared_memory, nccl) {}

ShardHost::~ShardHost() {
  if (batcher_ != nullptr) batcher_->Stop();
}

void ShardHost::Serve(const std::string& model_name, const std::string& fingerprint,
                      std::unique_ptr<ExpertRunner> runner,
                      std::function<void(const absl::Status&)> on_device_failure) {
  runner_ = std::move(runner);
  TokenBatcher::Options options;
  options.on_device_failure = std::move(on_device_failure);
  batcher_ = std::make_unique<TokenBatcher>(runner_.get(), &metrics_, std::move(options));
  service_.Activate(
      MakeShardDescription(model_name, config_, fingerprint, *runner_, placement_epoch_),
      DispatchRules(config_, runner_->expert_ids(), placement_epoch_), batcher_.get());
}

}  // namespace conclave
