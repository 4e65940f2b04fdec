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
#include "common/weight_dtype.h"
#include "kernels/device.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"

namespace conclave {

// Told now and then by the thread that loads, in bytes of packed weights; false gives up.
using LoadProgress = std::function<bool(size_t bytes_done, size_t bytes_total)>;

// The experts one process owns, the same ones of every sparse layer, and the loop that runs them.
// A shard has one behind its batcher; a worker that hosts experts itself calls one directly. Not
// thread-safe: one Run at a time, since the workspace is shared; another thread takes a Share.
class ExpertRunner {
 public:
  virtual ~ExpertRunner() = default;
  ExpertRunner(const ExpertRunner&) = delete;
  ExpertRunner& operator=(const ExpertRunner&) = delete;

  // On the CPU. Reads and packs the weights of `expert_ids` (rising global ids) and of no other
  // expert, as LoadPacked (weight_loader.h) keeps them for `dtype`, on all threads of the device.
  // `checkpoint` is not needed afterwards. `progress` may be empty.
  // Errors: InvalidArgument (a dense model; ids not rising, or not below num_experts), DataLoss (a
  // weight is missing or has another shape), Cancelled (progress said so).
  static absl::StatusOr<std::unique_ptr<ExpertRunner>> Load(const Checkpoint& checkpoint,
                                                            const Qwen3Config& config,
                                                            absl::Span<const int> expert_ids,
                                                            WeightDtype dtype, const Device& device,
                                                            const LoadProgress& progress = {});

  // The InvalidArgument of Load.
  static absl::Status CheckExpertIds(const Qwen3Config& config, absl::Span<const int> expert_ids);

  const std::vector<int>& expert_ids() const { return expert_ids_; }
  int hidden_size() const { return hidden_size_; }
  // [num_hidden_layers]: the layer's place among those with experts; -1: it has none.
  const std::vector<int>& sparse_of_layer() const { return sparse_of_layer_; }
  WeightDtype dtype() const { return dtype_; }
  virtual size_t weight_bytes() const = 0;

  // A second runner of the same weights in memory, for another thread.
  // ResourceExhausted: its workspace.
  virtual absl::StatusOr<std::unique_ptr<ExpertRunner>> Share() const = 0;

  // True if Run can compute this expert in this layer. Any ids may be asked.
  bool Holds(int layer, int expert) const;

  // output[p] = expert pair_experts[p] of row pair_rows[p], rounded to BF16, for every pair p. The
  // result of a pair depends on its row and expert alone.
  // hidden_states [num_rows, hidden_size]; the two lists have one length, the experts never fall;
  // output [num_pairs, hidden_size]; all in host memory. Blocks until done.
  // Errors: InvalidArgument (lists of different lengths, experts that fall, a row that is not
  // below num_rows), FailedPrecondition (an expert or layer that is not here), Internal (a GPU
  // failed).
  absl::Status Run(int layer, const BFloat16* hidden_states, int64_t num_rows,
                   absl::Span<const uint32_t> pair_rows, absl::Span<const uint32_t> pair_experts,
                   BFloat16* output);

 protected:
  // The pairs of one expert, which lie one after another.
  struct Group {
    int slot = 0;  // of the expert in expert_ids
    int64_t first_pair = 0;
    int64_t num_pairs = 0;
  };
  // At most limits::kMaxExpertBatchPairs pairs of one layer, checked.
  struct Pairs {
    int layer = 0;
    const BFloat16* hidden_states = nullptr;  // [num_rows, hidden_size]
    int64_t num_rows = 0;
    absl::Span<const uint32_t> rows;  // of hidden_states, for each pair
    absl::Span<const Group> groups;   // cover the pairs, slots rise
    BFloat16* output = nullptr;       // [rows.size(), hidden_size]
  };

  ExpertRunner(const Qwen3Config& config, absl::Span<const int> expert_ids, WeightDtype dtype);
  virtual absl::Status RunGroups(const Pairs& pairs) = 0;

 private:
  absl::Status RunSlice(int layer, const BFloat16* hidden_states, int64_t num_rows,
                        absl::Span<const uint32_t> pair_rows,
                        absl::Span<const uint32_t> pair_experts, BFloat16* output);

  const int hidden_size_;
  const WeightDtype dtype_;
  const std::vector<int> expert_ids_;
  std::vector<int> slot_of_expert_;   // [num_experts]; -1: not here
  std::vector<int> sparse_of_layer_;  // [num_hidden_layers]; -1: a dense layer
  std::vector<Group> groups_;
};

}  // namespace conclave
