#include <algorithm>
#include <string>
#include <utility>

#include "common/status_macros.h"
#include "expert_shard/expert_runner.h"
#include "expert_shard/weight_loader.h"
#include "kernels/expert_ffn.h"
#include "model/weight_catalog.h"

namespace conclave {
namespace {

struct CpuWeights {
  std::vector<ExpertWeights> experts;  // [sparse layers][slots]
  size_t bytes = 0;
};

class CpuExpertRunner final : public ExpertRunner {
 public:
  CpuExpertRunner(const Qwen3Config& config, absl::Span<const int> expert_ids, WeightDtype dtype,
                  const Device& device, std::shared_ptr<const CpuWeights> weights)
      : ExpertRunner(config, expert_ids, dtype),
        config_(config),
        device_(device),
        weights_(std::move(weights)) {}

  size_t weight_bytes() const override { return weights_->bytes; }

  // Threads of the pool serve one caller at a time.
  absl::StatusOr<std::unique_ptr<ExpertRunner>> Share() const override {
    return std::make_unique<CpuExpertRunner>(config_, expert_ids(), dtype(), device_, weights_);
  }

 protected:
  absl::Status RunGroups(const Pairs& pairs) override {
    const size_t first_slot =
        static_cast<size_t>(sparse_of_layer()[pairs.layer]) * expert_ids().size();
    groups_.clear();
    for (const Group& group : pairs.groups) {
      groups_.push_back(
          {&weights_->experts[first_slot + group.slot], group.first_pair, group.num_pairs});
    }
    ExpertFfnArgs args;
    args.hidden_states = pairs.hidden_states;
    args.pair_rows = pairs.rows;
    args.groups = groups_;
    args.output = pairs.output;
    args.num_rows = pairs.num_rows;
    args.hidden_size = hidden_size();
    args.moe_intermediate_size = config_.moe_intermediate_size;
    args.workspace = &workspace_;
    return ExpertFfn(args, device_);
  }

 private:
  const Qwen3Config config_;
  const Device device_;
  const std::shared_ptr<const CpuWeights> weights_;
  std::vector<ExpertGroup> groups_;
  ExpertFfnWorkspace workspace_;
};

// On the calling thread: experts are loaded beside each other.
absl::StatusOr<ExpertWeights> LoadExpert(const Checkpoint& checkpoint, const Qwen3Config& config,
                                         int layer, int expert, WeightDtype dtype) {
  const auto part = [&](absl::string_view proj, int64_t rows) {
    return MatrixPart{ExpertWeightName(layer, expert, proj), rows};
  };
  const MatrixPart gate_up[] = {part("gate_proj", config.moe_intermediate_size),
                                part("up_proj", config.moe_intermediate_size)};
  const MatrixPart down = part("down_proj", config.hidden_size);
  ExpertWeights weights;
  ASSIGN_OR_RETURN(weights.gate_up_proj,
                   LoadPacked(checkpoint, gate_up, config.hidden_size, dtype, nullptr));
  ASSIGN_OR_RETURN(weights.down_proj, LoadPacked(checkpoint, {&down, 1},
                                                 config.moe_intermediate_size, dtype, nullptr));
  return weights;
}

absl::Status LoadAll(const Checkpoint& checkpoint, const Qwen3Config& config,
                     absl::Span<const int> expert_ids, WeightDtype dtype, const Device& device,
                     const LoadProgress& progress, CpuWeights& weights) {
  std::vector<int> sparse_layers;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.IsSparseLayer(layer)) sparse_layers.push_back(layer);
  }
  const int64_t num_experts = static_cast<int64_t>(expert_ids.size());
  const int64_t total = static_cast<int64_t>(sparse_layers.size()) * num_experts;
  weights.experts.resize(total);
  const auto load_one = [&](int64_t i) -> absl::Status {
    ASSIGN_OR_RETURN(weights.experts[i],
                     LoadExpert(checkpoint, config, sparse_layers[i / num_experts],
                                expert_ids[i % num_experts], dtype));
    return absl::OkStatus();
  };
  // Some experts a thread between two words of progress: the threads wait for the slowest of them.
  const int num_threads = device.pool == nullptr ? 1 : device.pool->num_threads();
  const int64_t batch = int64_t{8} * num_threads;
  for (int64_t begin = 0; begin < total; begin += batch) {
    std::vector<absl::Status> statuses(std::min(batch, total - begin));
    const auto load_range = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) statuses[i] = load_one(begin + i);
    };
    const int64_t count = static_cast<int64_t>(statuses.size());
    if (device.pool == nullptr) {
      load_range(0, count);
    } else {
      device.pool->ParallelFor(count, 1, load_range);
    }
    for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
    const ExpertWeights& last = weights.experts[begin + count - 1];
    const size_t expert_bytes = last.gate_up_proj.bytes() + last.down_proj.bytes();
    weights.bytes = expert_bytes * (begin + count);
    if (progress && !progress(weights.bytes, expert_bytes * total)) {
      return absl::CancelledError("loading experts was given up");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertRunner>> ExpertRunner::Load(
    const Checkpoint& checkpoint, const Qwen3Config& config, absl::Span<const int> expert_ids,
    WeightDtype dtype, const Device& device, const LoadProgress& progress) {
  RETURN_IF_ERROR(CheckExpertIds(config, expert_ids));
  auto weights = std::make_shared<CpuWeights>();
  RETURN_IF_ERROR(LoadAll(checkpoint, config, expert_ids, dtype, device, progress, *weights));
  return std::make_unique<CpuExpertRunner>(config, expert_ids, dtype, device, std::move(weights));
}

}  // namespace conclave
