#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace conclave {

// How a weight matrix is kept in memory; see PackedMatrix for the layouts.
enum class WeightDtype {
  kBf16,
  kInt8,  // symmetric, one FP32 scale per output and group of inputs; activations become int8 too
  kInt4,  // as kInt8 in smaller groups, computed as int8
  kFp8,   // E4M3 with one FP32 scale per 128 x 128 block, computed as BF16
};

// "bf16", "int8", "int4", "fp8". InvalidArgument for another word.
absl::StatusOr<WeightDtype> ParseWeightDtype(absl::string_view name);
absl::string_view WeightDtypeName(WeightDtype dtype);

// Consecutive inputs of one output that share a scale; 0 for kBf16, which has none.
int64_t WeightGroupSize(WeightDtype dtype);

// Memory of a packed matrix [out_features, in_features], its scales and padding included.
size_t WeightBytes(WeightDtype dtype, int64_t out_features, int64_t in_features);

}  // namespace conclave
