#include "expert_shard/cuda/cuda_experts.h"

#include <numeric>
#include <utility>

#include "common/status_macros.h"

namespace conclave {
namespace {

absl::Status Build(const Qwen3Config& config, absl::Span<const int> expert_ids,
                   DeviceWeightBuilder& builder, const LoadProgress& progress, int64_t total,
                   CudaExperts& out) {
  out.expert_ids.assign(expert_ids.begin(), expert_ids.end());
  out.layers.resize(config.num_hidden_layers);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (!config.IsSparseLayer(layer) || expert_ids.empty()) continue;
    CudaExpertLayer& weights = out.layers[layer];
    RETURN_IF_ERROR(builder.Experts(layer, expert_ids, &weights.gate_up_proj, &weights.down_proj));
    if (progress && !progress(builder.bytes(), total)) {
      return absl::CancelledError("loading experts was given up");
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t CudaExpertBytes(const Qwen3Config& config, int num_experts) {
  std::vector<int> ids(num_experts);
  std::iota(ids.begin(), ids.end(), 0);
  DeviceWeightBuilder builder(config, nullptr);
  CudaExperts counted;
  return Build(config, ids, builder, {}, 0, counted).ok() ? builder.bytes() : 0;
}

absl::StatusOr<std::shared_ptr<const CudaExperts>> LoadCudaExperts(DeviceWeightSource& source,
                                                                   const Qwen3Config& config,
                                                                   absl::Span<const int> expert_ids,
                                                                   const LoadProgress& progress) {
  RETURN_IF_ERROR(ExpertRunner::CheckExpertIds(config, expert_ids));
  auto experts = std::make_shared<CudaExperts>();
  DeviceWeightBuilder builder(config, &source);
  const absl::Status built =
      Build(config, expert_ids, builder, progress,
            CudaExpertBytes(config, static_cast<int>(expert_ids.size())), *experts);
  // Copies under way must not outlive what they copy to.
  const absl::Status finished = source.Finish();
  RETURN_IF_ERROR(built);
  RETURN_IF_ERROR(finished);
  experts->bytes = builder.bytes();
  experts->memory = builder.TakeMemory();
  return experts;
}

}  // namespace conclave
