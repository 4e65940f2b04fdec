#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/bfloat16.h"
#include "kernels/device.h"
#include "kernels/packed_matrix.h"

namespace conclave {

struct ExpertWeights {
  PackedMatrix gate_up_proj;  // [2 * moe_intermediate_size, hidden_size]: gate over up
  PackedMatrix down_proj;     // [hidden_size, moe_intermediate_size]
};

// Consecutive (row, expert) pairs that one expert computes.
struct ExpertGroup {
  const ExpertWeights* weights = nullptr;
  int64_t first_pair = 0;
  int64_t num_pairs = 0;
};

// Kept between calls so that a step allocates only while it grows.
struct ExpertFfnWorkspace {
  std::vector<BFloat16> intermediate;  // [num_pairs, moe_intermediate_size]
};

struct ExpertFfnArgs {
  const BFloat16* hidden_states = nullptr;    // [num_rows, hidden_size]
  absl::Span<const uint32_t> pair_rows = {};  // [num_pairs]: row of hidden_states, by expert
  absl::Span<const ExpertGroup> groups = {};  // cover the pairs in order
  BFloat16* output = nullptr;                 // out [num_pairs, hidden_size], in the pairs' order
  int64_t num_rows = 0;
  int64_t hidden_size = 0;
  int64_t moe_intermediate_size = 0;  // a multiple of PackedMatrix::kPanel
  ExpertFfnWorkspace* workspace = nullptr;
};

// Per pair: down_proj(silu(gate_proj x) * up_proj x), FP32 sums, BF16 after SwiGLU and at the end.
// A pair's result depends on its row and expert alone. Each expert's weights are read once.
// The groups' matrices are of one dtype each; for what dtypes compute see Linear.
// Errors: InvalidArgument (null pointer, size or row out of range, shapes, dtypes or groups that
// disagree).
// Source: Qwen3MoeMLP.forward in transformers.
absl::Status ExpertFfn(const ExpertFfnArgs& args, const Device& device);
absl::Status ExpertFfnReference(const ExpertFfnArgs& args);

}  // namespace conclave
