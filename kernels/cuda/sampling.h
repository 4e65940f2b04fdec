#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/runtime.h"
#include "kernels/sampling.h"

namespace conclave::cuda {

// The largest top_k below the vocabulary that the device sorts.
inline constexpr int kMaxSortedTopK = 1024;

// One row's SamplingParams and where its penalties and biases lie.
struct SamplerRow {
  float temperature = 1;
  float top_p = 1;
  float min_p = 0;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  float repetition_penalty = 1;
  int32_t top_k = 0;
  int32_t first_count = 0, num_counts = 0;  // in DeviceSampleArgs::counts
  int32_t first_bias = 0, num_biases = 0;
  uint64_t seed = 0;
  uint64_t position = 0;
};

// One id of the prompt or of what was generated; once in a row.
struct SamplerCount {
  uint32_t id = 0;
  int32_t num_generated = 0;
};

struct SamplerBias {
  uint32_t id = 0;
  float bias = 0;  // -infinity forbids the id; ids once in a row
};

struct DeviceSampleArgs {
  float* logits = nullptr;  // [num_rows, vocab_size]; in, and scratch
  const SamplerRow* rows = nullptr;
  const SamplerCount* counts = nullptr;  // may be null if no row has any
  const SamplerBias* biases = nullptr;   // likewise
  uint32_t* ids = nullptr;               // out [num_rows]
  int32_t* failures = nullptr;           // out [num_rows]: a SampleFailure
  int num_rows = 0;
  int64_t vocab_size = 0;
  int64_t num_ids = 0;  // ids from here on are padding and are never sampled
};

enum class SampleFailure : int32_t { kNone, kNotFinite, kAllForbidden, kOverflow };

// OK, or the error of conclave::Sample that the failure stands for.
absl::Status ToStatus(SampleFailure failure);

// The row for valid `params`; counts and biases are the caller's to fill in. Unimplemented if the
// device cannot draw it (log probabilities, a top_k above kMaxSortedTopK): the host does.
absl::StatusOr<SamplerRow> MakeSamplerRow(const SamplingParams& params, uint64_t position,
                                          int64_t num_ids);

// The order of conclave::Sample, its generator, its exp to the bit. With top_k, or temperature 0,
// the id is the host's: the same sums in the same order. Otherwise weights are added as multiples
// of 2^-45 (so that threads may add in any order): the id is the host's unless the number drawn, or
// top_p, falls within 2^-27 of the weights' sum next to an edge between ids. One thread block a
// row: a row's id depends on that row alone, by construction. Errors: InvalidArgument (null
// pointer, size out of range), Internal (launch failed); those of a row are in `failures`.
absl::Status Sample(const DeviceSampleArgs& args, const Stream& stream);

}  // namespace conclave::cuda
