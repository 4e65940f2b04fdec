#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/device.h"

namespace conclave {

struct RmsNormArgs {
  const float* input = nullptr;   // [num_rows, hidden_size], the residual stream
  const float* weight = nullptr;  // [hidden_size]
  BFloat16* output = nullptr;     // out [num_rows, hidden_size]
  int64_t num_rows = 0;
  int64_t hidden_size = 0;
  float rms_norm_eps = 1e-6f;
};

// output = input / sqrt(mean(input^2) + eps) * weight, in FP32, rounded once at the end.
// Source: Qwen3RMSNorm.forward in Hugging Face transformers.
absl::Status RmsNorm(const RmsNormArgs& args, const Device& device);
absl::Status RmsNormReference(const RmsNormArgs& args);

}  // namespace conclave
