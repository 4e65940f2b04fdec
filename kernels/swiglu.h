#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/device.h"

namespace conclave {

struct SwiGluArgs {
  const float* gate_up = nullptr;  // [num_rows, 2 * intermediate_size]: gate, then up
  BFloat16* output = nullptr;      // out [num_rows, intermediate_size]
  int64_t num_rows = 0;
  int64_t intermediate_size = 0;
};

// silu(gate) * up in FP32, rounded once. Source: Qwen3MLP.forward in transformers.
absl::Status SwiGlu(const SwiGluArgs& args, const Device& device);
absl::Status SwiGluReference(const SwiGluArgs& args);

}  // namespace conclave
