#include "worker/rope.h"

namespace conclave {

RopeTable MakeRope(const Qwen3Config& config) {
  RopeParams params;
  params.head_dim = config.head_dim;
  params.rope_theta = config.rope_theta;
  params.max_positions = config.MaxContext();
  if (config.rope_scaling.has_value()) {
    YarnParams yarn;
    yarn.factor = static_cast<float>(config.rope_scaling->factor);
    yarn.original_max_position_embeddings = config.rope_scaling->original_max_position_embeddings;
    yarn.attention_factor = static_cast<float>(config.rope_scaling->attention_factor);
    yarn.beta_fast = static_cast<float>(config.rope_scaling->beta_fast);
    yarn.beta_slow = static_cast<float>(config.rope_scaling->beta_slow);
    params.yarn = yarn;
  }
  return MakeRopeTable(params);
}

}  // namespace conclave
