#include "model/known_models.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace conclave {
namespace {

struct Shape {
  const char* name;
  int num_hidden_layers, hidden_size, num_attention_heads, num_key_value_heads, intermediate_size;
  bool tie_word_embeddings;
  int moe_intermediate_size;  // 0: dense
};

constexpr Shape kShapes[] = {
    {"qwen3-0.6b", 28, 1024, 16, 8, 3072, true, 0},
    {"qwen3-1.7b", 28, 2048, 16, 8, 6144, true, 0},
    {"qwen3-4b", 36, 2560, 32, 8, 9728, true, 0},
    {"qwen3-8b", 36, 4096, 32, 8, 12288, false, 0},
    {"qwen3-14b", 40, 5120, 40, 8, 17408, false, 0},
    {"qwen3-30b-a3b", 48, 2048, 32, 4, 6144, false, 768},
    {"qwen3-32b", 64, 5120, 64, 8, 25600, false, 0},
    {"qwen3-235b-a22b", 94, 4096, 64, 4, 12288, false, 1536},
};

Qwen3Config ConfigOf(const Shape& shape) {
  Qwen3Config config;
  config.num_hidden_layers = shape.num_hidden_layers;
  config.hidden_size = shape.hidden_size;
  config.num_attention_heads = shape.num_attention_heads;
  config.num_key_value_heads = shape.num_key_value_heads;
  config.intermediate_size = shape.intermediate_size;
  config.tie_word_embeddings = shape.tie_word_embeddings;
  config.head_dim = 128;
  config.vocab_size = 151936;  // 151,669 real ids, padded
  config.max_position_embeddings = 40960;
  config.rms_norm_eps = 1e-6;
  config.rope_theta = 1e6;
  config.eos_token_ids = {151645};  // <|im_end|>
  if (shape.moe_intermediate_size > 0) {
    config.architecture = Qwen3Architecture::kMoe;
    config.num_experts = 128;
    config.num_experts_per_tok = 8;
    config.moe_intermediate_size = shape.moe_intermediate_size;
  }
  return config;
}

}  // namespace

absl::StatusOr<Qwen3Config> KnownModel(absl::string_view name) {
  const std::string wanted = absl::AsciiStrToLower(name);
  for (const Shape& shape : kShapes) {
    if (wanted == shape.name) return ConfigOf(shape);
  }
  return absl::NotFoundError(absl::StrCat("model is \"", name, "\", want one of ",
                                          absl::StrJoin(KnownModelNames(), ", ")));
}

std::vector<std::string> KnownModelNames() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

}  // namespace conclave
