#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/cuda/runtime.h"

// Made-up weights in place, so that a model's full shape runs without its checkpoint. A value
// depends on the seed and its index alone. Device memory; asynchronous on `stream`. Errors:
// InvalidArgument (null pointer, negative size), Internal (launch failed).
namespace conclave::cuda {

// Uniform, mean 0, with this standard deviation.
absl::Status FillRandomBf16(BFloat16* values, int64_t count, float deviation, uint64_t seed,
                            const Stream& stream);

// E4M3 bytes of random sign and size below 2 (none is NaN), whose standard deviation is about 0.6.
absl::Status FillRandomFp8(uint8_t* values, int64_t count, uint64_t seed, const Stream& stream);

}  // namespace conclave::cuda
