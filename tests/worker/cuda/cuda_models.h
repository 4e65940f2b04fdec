#pragma once

#include <gtest/gtest.h>

#include "kernels/cuda/runtime.h"
#include "model/synthetic.h"

namespace conclave {

inline Qwen3Config Dense() {
  Qwen3Config config = TinyDenseConfig();
  config.head_dim = 32;
  return config;
}
inline Qwen3Config Moe() {
  Qwen3Config config = TinyMoeConfig();
  config.head_dim = 64;
  return config;
}
// Every expert for every token. Where experts are chosen, a gate logit that is rounded otherwise
// may choose another one and change everything after it: right, and not to be compared.
inline Qwen3Config AllExperts(Qwen3Config config) {
  config.num_experts_per_tok = config.num_experts;
  return config;
}
// Experts, o_proj in FP8; k_proj has too few rows for blocks of its own, so that qkv_proj is
// widened.
inline Qwen3Config Fp8Moe() {
  Qwen3Config config = Moe();
  config.hidden_size = 128;
  config.moe_intermediate_size = 128;
  config.quantization = WeightQuantization::kFp8Block128;
  return config;
}

// All that is not an expert in FP8, in widths that cuBLASLt multiplies as such.
inline Qwen3Config Fp8Dense() {
  Qwen3Config config = Dense();
  config.hidden_size = 512;
  config.intermediate_size = 512;
  config.num_attention_heads = 8;
  config.num_key_value_heads = 2;
  config.head_dim = 64;
  config.quantization = WeightQuantization::kFp8Block128;
  return config;
}

class CudaDecoderTest : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::DeviceCount() == 0) GTEST_SKIP() << "SKIPPED: no GPU here, no CUDA decoder was run";
  }
};

}  // namespace conclave
