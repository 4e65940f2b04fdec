#include "kernels/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace conclave {
namespace {

// Dimension whose wave turns num_rotations times within max_positions.
double CorrectionDim(double num_rotations, int head_dim, double theta, int64_t max_positions) {
  return head_dim *
         std::log(static_cast<double>(max_positions) / (num_rotations * 2 * std::numbers::pi)) /
         (2 * std::log(theta));
}

// Rotation per position of dimensions i and i + head_dim / 2. Rounded to FP32 at each step as
// transformers does: at position 40000 a last bit of the frequency turns an angle by 0.002.
std::vector<float> InverseFrequencies(const RopeParams& params) {
  const int half = params.head_dim / 2;
  std::vector<float> inverse(half);
  for (int i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(params.head_dim);
    inverse[i] = 1.0f / static_cast<float>(std::pow(params.rope_theta, exponent));
  }
  if (!params.yarn.has_value()) return inverse;

  const YarnParams& yarn = *params.yarn;
  const int64_t trained = yarn.original_max_position_embeddings;
  double low =
      std::floor(CorrectionDim(yarn.beta_fast, params.head_dim, params.rope_theta, trained));
  double high =
      std::ceil(CorrectionDim(yarn.beta_slow, params.head_dim, params.rope_theta, trained));
  low = std::max(low, 0.0);
  high = std::min(high, params.head_dim - 1.0);
  if (low == high) high += 0.001;  // no division by zero
  for (int i = 0; i < half; ++i) {
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    // Fast waves keep their frequency; slow ones are stretched by the factor.
    inverse[i] = inverse[i] / yarn.factor * ramp + inverse[i] * (1.0f - ramp);
  }
  return inverse;
}

float AttentionFactor(const RopeParams& params) {
  if (!params.yarn.has_value()) return 1;
  if (params.yarn->attention_factor != 0) return params.yarn->attention_factor;
  return params.yarn->factor <= 1
             ? 1.0f
             : static_cast<float>(0.1 * std::log(static_cast<double>(params.yarn->factor)) + 1);
}

}  // namespace

RopeTable MakeRopeTable(const RopeParams& params) {
  const std::vector<float> inverse = InverseFrequencies(params);
  const float factor = AttentionFactor(params);
  const size_t half = inverse.size();
  RopeTable table;
  table.head_dim = params.head_dim;
  table.max_positions = params.max_positions;
  table.cos.resize(params.max_positions * half);
  table.sin.resize(params.max_positions * half);
  for (int64_t position = 0; position < params.max_positions; ++position) {
    for (size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * inverse[i];
      table.cos[position * half + i] = static_cast<float>(std::cos(double{angle})) * factor;
      table.sin[position * half + i] = static_cast<float>(std::sin(double{angle})) * factor;
    }
  }
  return table;
}

}  // namespace conclave
