#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace conclave {

// Fields of config.json's rope_scaling with rope_type "yarn"; absent ones hold transformers'
// defaults, attention_factor 0 means 0.1 * ln(factor) + 1.
struct YarnParams {
  float factor = 1;
  int64_t original_max_position_embeddings = 0;
  float attention_factor = 0;
  float beta_fast = 32;
  float beta_slow = 1;
};

struct RopeParams {
  int head_dim = 0;  // even
  double rope_theta = 1e6;
  int64_t max_positions = 0;  // positions the table covers
  std::optional<YarnParams> yarn = std::nullopt;
};

// cos and sin of every position, already multiplied by YaRN's attention factor:
// row-major [max_positions, head_dim / 2], FP32.
struct RopeTable {
  int head_dim = 0;
  int64_t max_positions = 0;
  std::vector<float> cos;
  std::vector<float> sin;
};

// Source: _compute_default_rope_parameters and _compute_yarn_parameters in transformers.
RopeTable MakeRopeTable(const RopeParams& params);

}  // namespace conclave
