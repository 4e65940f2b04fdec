#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/bfloat16.h"
#include "kernels/device.h"
#include "kernels/expert_ffn.h"
#include "kernels/weight_dtype.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"

namespace conclave {

// Told now and then by the thread that loads, in bytes of packed weights; false gives up.
using LoadProgress = std::function<bool(size_t bytes_done, size_t bytes_total)>;

// The experts one process owns, the same ones of every sparse layer, and the loop that runs them.
// A shard has one behind its batcher; a worker that hosts experts itself calls one directly. Not
// thread-safe: one Run at a time, since the workspace is shared.
class ExpertRunner {
 public:
  // Reads and packs the weights of `expert_ids` (rising global ids) and of no other expert, as
  // LoadPacked (weight_loader.h) keeps them for `dtype`, on all threads of the device.
  // `checkpoint` is not needed afterwards. `progress` may be empty.
  // Errors: InvalidArgument (a dense model; ids not rising, or not below num_experts), DataLoss (a
  // weight is missing or has another shape), Cancelled (progress said so).
  static absl::StatusOr<std::unique_ptr<ExpertRunner>> Load(const Checkpoint& checkpoint,
                                                            const Qwen3Config& config,
                                                            absl::Span<const int> expert_ids,
                                                            WeightDtype dtype, const Device& device,
                                                            const LoadProgress& progress = {});

  const std::vector<int>& expert_ids() const { return expert_ids_; }
  int hidden_size() const { return hidden_size_; }
  // [num_hidden_layers]: the layer's place among those with experts; -1: it has none.
  const std::vector<int>& sparse_of_layer() const { return sparse_of_layer_; }
  WeightDtype dtype() const { return dtype_; }
  size_t weight_bytes() const { return weight_bytes_; }

  // True if Run can compute this expert in this layer. Any ids may be asked.
  bool Holds(int layer, int expert) const { return FindWeights(layer, expert) != nullptr; }

  // output[p] = expert pair_experts[p] of row pair_rows[p], rounded to BF16, for every pair p. The
  // result of a pair depends on its row and expert alone.
  // hidden_states [num_rows, hidden_size]; the two lists have one length, the experts never fall;
  // output [num_pairs, hidden_size]. Blocks until done.
  // Errors: InvalidArgument (lists of different lengths, experts that fall, a row that is not
  // below num_rows), FailedPrecondition (an expert or layer that is not here).
  absl::Status Run(int layer, const BFloat16* hidden_states, int64_t num_rows,
                   absl::Span<const uint32_t> pair_rows, absl::Span<const uint32_t> pair_experts,
                   BFloat16* output);

 private:
  ExpertRunner(const Qwen3Config& config, absl::Span<const int> expert_ids, WeightDtype dtype,
               const Device& device);

  absl::Status LoadWeights(const Checkpoint& checkpoint, const LoadProgress& progress);
  const ExpertWeights* FindWeights(int layer, int expert) const;
  absl::Status RunPairs(int layer, const BFloat16* hidden_states, int64_t num_rows,
                        absl::Span<const uint32_t> pair_rows,
                        absl::Span<const uint32_t> pair_experts, BFloat16* output);

  const int hidden_size_;
  const int moe_intermediate_size_;
  const WeightDtype dtype_;
  const Device device_;
  const std::vector<int> expert_ids_;
  std::vector<int> slot_of_expert_;     // [num_experts]; -1: not here
  std::vector<int> sparse_of_layer_;    // [num_hidden_layers]; -1: a dense layer
  std::vector<ExpertWeights> weights_;  // [sparse layers][slots]
  size_t weight_bytes_ = 0;
  std::vector<ExpertGroup> groups_;
  ExpertFfnWorkspace workspace_;
};

}  // namespace conclave
