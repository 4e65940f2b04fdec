#include "expert_shard/expert_runner.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "model/weight_catalog.h"
#include "model/weight_reader.h"

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

absl::StatusOr<ExpertWeights> LoadExpert(const Checkpoint& checkpoint, int layer, int expert,
                                         int64_t hidden_size, int64_t moe_intermediate_size,
                                         ThreadPool* pool) {
  const auto read = [&](absl::string_view proj, int64_t rows, int64_t cols) {
    return ReadMatrix(checkpoint, ExpertWeightName(layer, expert, proj), rows, cols);
  };
  ASSIGN_OR_RETURN(const MatrixSource gate, read("gate_proj", moe_intermediate_size, hidden_size));
  ASSIGN_OR_RETURN(const MatrixSource up, read("up_proj", moe_intermediate_size, hidden_size));
  ASSIGN_OR_RETURN(const MatrixSource down, read("down_proj", hidden_size, moe_intermediate_size));
  ExpertWeights weights;
  weights.gate_up_proj = PackedMatrix::Pack(
      {MatrixRows{gate.data(), gate.rows()}, MatrixRows{up.data(), up.rows()}}, hidden_size, pool);
  weights.down_proj =
      PackedMatrix::Pack({MatrixRows{down.data(), down.rows()}}, moe_intermediate_size, pool);
  return weights;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertRunner>> ExpertRunner::Load(const Checkpoint& checkpoint,
                                                                 const Qwen3Config& config,
                                                                 absl::Span<const int> expert_ids,
                                                                 const Device& device,
                                                                 const LoadProgress& progress) {
  RETURN_IF_ERROR(CheckExpertIds(config, expert_ids));
  std::unique_ptr<ExpertRunner> runner(new ExpertRunner(config, expert_ids, device));
  RETURN_IF_ERROR(runner->LoadWeights(checkpoint, progress));
  return runner;
}

ExpertRunner::ExpertRunner(const Qwen3Config& config, absl::Span<const int> expert_ids,
                           const Device& device)
    : hidden_size_(config.hidden_size),
      moe_intermediate_size_(config.moe_intermediate_size),
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
  const size_t num_layers =
      sparse_of_layer_.size() - std::count(sparse_of_layer_.begin(), sparse_of_layer_.end(), -1);
  const size_t total = num_layers * expert_ids_.size();
  weights_.reserve(total);
  for (size_t layer = 0; layer < sparse_of_layer_.size(); ++layer) {
    if (sparse_of_layer_[layer] < 0) continue;
    for (const int expert : expert_ids_) {
      ASSIGN_OR_RETURN(ExpertWeights weights,
                       LoadExpert(checkpoint, static_cast<int>(layer), expert, hidden_size_,
                                  moe_intermediate_size_, device_.pool));
      const size_t expert_bytes = weights.gate_up_proj.bytes() + weights.down_proj.bytes();
      weight_bytes_ += expert_bytes;
      weights_.push_back(std::move(weights));
      if (progress && !progress(weight_bytes_, total * expert_bytes)) {
        return absl::CancelledError("loading experts was given up");
      }
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
