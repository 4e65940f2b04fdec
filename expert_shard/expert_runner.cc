#include "expert_shard/expert_runner.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "expert_shard/weight_loader.h"
#include "model/weight_catalog.h"

namespace conclave {
namespace {

absl::Status CheckExpertIds(const Qwen3Config& config, absl::Span<const int> expert_ids) {
  if (config.num_experts == 0) {
    return absl::InvalidArgumentError("num_experts is 0: a dense model has no experts to run");
  }
  for (size_t i = 0; i < expert_ids.size(); ++i) {
    if (expert_ids[i] < 0 || expert_ids[i] >= config.num_experts) {
      return errors::OutOfRange("expert id", expert_ids[i],
                                absl::StrCat("0..", config.num_experts - 1));
    }
    if (i > 0 && expert_ids[i] <= expert_ids[i - 1]) {
      return errors::OutOfRange(absl::StrCat("expert id after ", expert_ids[i - 1]), expert_ids[i],
                                "rising ids");
    }
  }
  return absl::OkStatus();
}

// On the calling thread: experts are loaded beside each other.
absl::StatusOr<ExpertWeights> LoadExpert(const Checkpoint& checkpoint, int layer, int expert,
                                         int64_t hidden_size, int64_t moe_intermediate_size,
                                         WeightDtype dtype) {
  const auto part = [&](absl::string_view proj, int64_t rows) {
    return MatrixPart{ExpertWeightName(layer, expert, proj), rows};
  };
  const MatrixPart gate_up[] = {part("gate_proj", moe_intermediate_size),
                                part("up_proj", moe_intermediate_size)};
  const MatrixPart down = part("down_proj", hidden_size);
  ExpertWeights weights;
  ASSIGN_OR_RETURN(weights.gate_up_proj,
                   LoadPacked(checkpoint, gate_up, hidden_size, dtype, nullptr));
  ASSIGN_OR_RETURN(weights.down_proj,
                   LoadPacked(checkpoint, {&down, 1}, moe_intermediate_size, dtype, nullptr));
  return weights;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertRunner>> ExpertRunner::Load(
    const Checkpoint& checkpoint, const Qwen3Config& config, absl::Span<const int> expert_ids,
    WeightDtype dtype, const Device& device, const LoadProgress& progress) {
  RETURN_IF_ERROR(CheckExpertIds(config, expert_ids));
  std::unique_ptr<ExpertRunner> runner(new ExpertRunner(config, expert_ids, dtype, device));
  RETURN_IF_ERROR(runner->LoadWeights(checkpoint, progress));
  return runner;
}

ExpertRunner::ExpertRunner(const Qwen3Config& config, absl::Span<const int> expert_ids,
                           WeightDtype dtype, const Device& device)
    : hidden_size_(config.hidden_size),
      moe_intermediate_size_(config.moe_intermediate_size),
      dtype_(dtype),
      device_(device),
      expert_ids_(expert_ids.begin(), expert_ids.end()),
      slot_of_expert_(config.num_experts, -1),
      sparse_of_layer_(config.num_hidden_layers, -1) {
  for (size_t slot = 0; slot < expert_ids_.size(); ++slot) {
    slot_of_expert_[expert_ids_[slot]] = static_cast<int>(slot);
  }
  int sparse = 0;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.IsSparseLayer(layer)) sparse_of_layer_[layer] = sparse++;
  }
}

absl::Status ExpertRunner::LoadWeights(const Checkpoint& checkpoint, const LoadProgress& progress) {
  std::vector<int> sparse_layers;
  for (size_t layer = 0; layer < sparse_of_layer_.size(); ++layer) {
    if (sparse_of_layer_[layer] >= 0) sparse_layers.push_back(static_cast<int>(layer));
  }
  const int64_t num_experts = static_cast<int64_t>(expert_ids_.size());
  const int64_t total = static_cast<int64_t>(sparse_layers.size()) * num_experts;
  weights_.resize(total);
  const auto load_one = [&](int64_t i) -> absl::Status {
    ASSIGN_OR_RETURN(weights_[i], LoadExpert(checkpoint, sparse_layers[i / num_experts],
                                             expert_ids_[i % num_experts], hidden_size_,
                                             moe_intermediate_size_, dtype_));
    return absl::OkStatus();
  };
  // Some experts a thread between two words of progress: the threads wait for the slowest of them.
  const int num_threads = device_.pool == nullptr ? 1 : device_.pool->num_threads();
  const int64_t batch = int64_t{8} * num_threads;
  for (int64_t begin = 0; begin < total; begin += batch) {
    std::vector<absl::Status> statuses(std::min(batch, total - begin));
    const auto load_range = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) statuses[i] = load_one(begin + i);
    };
    const int64_t count = static_cast<int64_t>(statuses.size());
    if (device_.pool == nullptr) {
      load_range(0, count);
    } else {
      device_.pool->ParallelFor(count, 1, load_range);
    }
    for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
    const ExpertWeights& last = weights_[begin + count - 1];
    const size_t expert_bytes = last.gate_up_proj.bytes() + last.down_proj.bytes();
    weight_bytes_ = expert_bytes * (begin + count);
    if (progress && !progress(weight_bytes_, expert_bytes * total)) {
      return absl::CancelledError("loading experts was given up");
    }
  }
  return absl::OkStatus();
}

const ExpertWeights* ExpertRunner::FindWeights(int layer, int expert) const {
  if (layer < 0 || layer >= static_cast<int>(sparse_of_layer_.size())) return nullptr;
  if (expert < 0 || expert >= static_cast<int>(slot_of_expert_.size())) return nullptr;
  const int sparse = sparse_of_layer_[layer];
  const int slot = slot_of_expert_[expert];
  if (sparse < 0 || slot < 0) return nullptr;
  return &weights_[static_cast<size_t>(sparse) * expert_ids_.size() + slot];
}

absl::Status ExpertRunner::Run(int layer, const BFloat16* hidden_states, int64_t num_rows,
                               absl::Span<const uint32_t> pair_rows,
                               absl::Span<const uint32_t> pair_experts, BFloat16* output) {
  if (pair_rows.size() != pair_experts.size()) {
    return errors::OutOfRange("length of pair_experts", pair_experts.size(),
                              absl::StrCat(pair_rows.size(), ", that of pair_rows"));
  }
  for (size_t begin = 0; begin < pair_rows.size(); begin += limits::kMaxExpertBatchPairs) {
    const size_t count = std::min<size_t>(limits::kMaxExpertBatchPairs, pair_rows.size() - begin);
    RETURN_IF_ERROR(RunPairs(layer, hidden_states, num_rows, pair_rows.subspan(begin, count),
                             pair_experts.subspan(begin, count),
                             output + begin * static_cast<size_t>(hidden_size_)));
  }
  return absl::OkStatus();
}

absl::Status ExpertRunner::RunPairs(int layer, const BFloat16* hidden_states, int64_t num_rows,
                                    absl::Span<const uint32_t> pair_rows,
                                    absl::Span<const uint32_t> pair_experts, BFloat16* output) {
  groups_.clear();
  for (size_t pair = 0; pair < pair_rows.size(); ++pair) {
    const uint32_t expert = pair_experts[pair];
    if (pair_rows[pair] >= num_rows) {
      return errors::OutOfRange("pair_rows", pair_rows[pair], absl::StrCat("below ", num_rows));
    }
    if (pair > 0 && expert == pair_experts[pair - 1]) {
      ++groups_.back().num_pairs;
      continue;
    }
    if (pair > 0 && expert < pair_experts[pair - 1]) {
      return errors::OutOfRange(
          "pair_experts", expert,
          absl::StrCat("at least ", pair_experts[pair - 1], ", the one before"));
    }
    const ExpertWeights* weights = FindWeights(layer, static_cast<int>(expert));
    if (weights == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("expert ", expert, " of layer ", layer, " is not held here"));
    }
    groups_.push_back(ExpertGroup{weights, static_cast<int64_t>(pair), 1});
  }
  ExpertFfnArgs args;
  args.hidden_states = hidden_states;
  args.pair_rows = pair_rows;
  args.groups = groups_;
  args.output = output;
  args.num_rows = num_rows;
  args.hidden_size = hidden_size_;
  args.moe_intermediate_size = moe_intermediate_size_;
  args.workspace = &workspace_;
  return ExpertFfn(args, device_);
}

}  // namespace conclave
