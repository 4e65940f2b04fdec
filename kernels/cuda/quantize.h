#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/cuda/runtime.h"

namespace conclave::cuda {

inline constexpr int kQuantizeGroup = 128;  // values that share a scale

// Rows of activations as FP8, for weights in FP8. Device memory.
struct QuantizeRowsArgs {
  const BFloat16* input = nullptr;  // [num_rows, width], 8-byte aligned
  uint8_t* values = nullptr;        // out [num_padded_rows, width], E4M3, 4-byte aligned
  // Out [width / 128, num_padded_rows]: of each row's groups of 128, the largest magnitude over
  // 448, the largest that E4M3 has. One row after another within a group: as cuBLASLt wants them.
  float* scales = nullptr;
  int64_t num_rows = 0;
  int64_t num_padded_rows = 0;  // at least num_rows; rows past those become zeros
  int64_t width = 0;            // a multiple of 128
};

// values = input / scale, to nearest, ties to even. A group that holds an infinity or a NaN has a
// scale, or values, that make every product with it NaN. Asynchronous on `stream`. Bytes: 3 a
// value. Errors: InvalidArgument (null pointer, size out of range), Internal (launch failed).
absl::Status QuantizeRows(const QuantizeRowsArgs& args, const Stream& stream);

}  // namespace conclave::cuda
