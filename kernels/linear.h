#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/device.h"
#include "kernels/packed_matrix.h"

namespace conclave {

struct LinearArgs {                 // arrays are row-major
  const BFloat16* input = nullptr;  // [num_rows, in_features]
  const PackedMatrix* weight = nullptr;
  float* output = nullptr;  // out [num_rows, out_features], FP32 sums, not rounded
  int64_t num_rows = 0;
  bool accumulate = false;  // output += the product: the residual stream
};

// output[r, o] = sum over k of input[r, k] * weight[o, k]: FP32 sums over rising k for BF16 and FP8
// weights. Int8 and int4 weights: each group of a row is quantized as QuantizeInt8 does, its
// products are summed as whole numbers, and over rising groups sum += products * weight scale * row
// scale in FP32, each step rounded: the same bits on every instruction set. Bytes: weight.bytes()
// once for up to a tile of rows. FLOPs: 2 * num_rows * out * in. Errors: InvalidArgument (null
// pointer or negative size).
absl::Status Linear(const LinearArgs& args, const Device& device);
absl::Status LinearReference(const LinearArgs& args);  // same contract, plain loops

struct LinearSwiGluArgs {                      // arrays are row-major
  const BFloat16* input = nullptr;             // [num_rows, in_features]
  const PackedMatrix* gate_up_proj = nullptr;  // [2 * intermediate_size, in_features]: gate over up
  BFloat16* output = nullptr;                  // out [num_rows, intermediate_size]
  int64_t num_rows = 0;
};

// SwiGlu of what Linear gives, the same bits, without the FP32 rows in between: of 512 rows they
// are 12 MB for Qwen3-0.6B's 6,144 outputs and more for larger models, which would leave the caches
// and come back. Errors: InvalidArgument (null pointer, negative size, odd out_features).
absl::Status LinearSwiGlu(const LinearSwiGluArgs& args, const Device& device);
absl::Status LinearSwiGluReference(const LinearSwiGluArgs& args);

}  // namespace conclave
