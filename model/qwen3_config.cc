#include "model/qwen3_config.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"

namespace conclave {
namespace {

absl::Status CheckRange(absl::string_view field, int value, int low, int high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return errors::OutOfRange(field, value, absl::StrCat(low, "..", high));
}

absl::Status CheckNumber(absl::string_view field, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();  // false for NaN
  return errors::OutOfRange(field, value, absl::StrCat(low, "..", high));
}

absl::Status CheckYarn(const YarnScaling& yarn) {
  absl::Status status = CheckNumber("rope_scaling.factor", yarn.factor, 1, 1024);
  status.Update(CheckRange("rope_scaling.original_max_position_embeddings",
                           yarn.original_max_position_embeddings, 1, limits::kMaxContextTokens));
  status.Update(CheckNumber("rope_scaling.attention_factor", yarn.attention_factor, 1e-3, 1e3));
  status.Update(CheckNumber("rope_scaling.beta_slow", yarn.beta_slow, 1e-6, 1e6));
  status.Update(CheckNumber("rope_scaling.beta_fast", yarn.beta_fast, yarn.beta_slow, 1e6));
  if (status.ok() &&
      yarn.factor * yarn.original_max_position_embeddings > limits::kMaxContextTokens) {
    return errors::OutOfRange("rope_scaling.factor * original_max_position_embeddings",
                              yarn.factor * yarn.original_max_position_embeddings,
                              absl::StrCat("at most ", limits::kMaxContextTokens));
  }
  return status;
}

absl::Status CheckExperts(const Qwen3Config& config) {
  if (config.architecture == Qwen3Architecture::kDense) {
    if (config.num_experts == 0) return absl::OkStatus();
    return errors::OutOfRange("num_experts", config.num_experts, "0 in a Qwen3ForCausalLM");
  }
  absl::Status status = CheckRange("num_experts", config.num_experts, 1, limits::kMaxExperts);
  status.Update(
      CheckRange("num_experts_per_tok", config.num_experts_per_tok, 1, config.num_experts));
  status.Update(
      CheckRange("moe_intermediate_size", config.moe_intermediate_size, 1, limits::kMaxHiddenSize));
  // Gate and up rows are stacked in panels of 16; released models have 768 and 1536.
  if (config.moe_intermediate_size % 16 != 0) {
    status.Update(errors::OutOfRange("moe_intermediate_size", config.moe_intermediate_size,
                                     "a multiple of 16"));
  }
  status.Update(
      CheckRange("decoder_sparse_step", config.decoder_sparse_step, 1, limits::kMaxLayers));
  for (const int layer : config.mlp_only_layers) {
    status.Update(CheckRange("mlp_only_layers", layer, 0, config.num_hidden_layers - 1));
  }
  return status;
}

}  // namespace

absl::string_view ArchitectureName(Qwen3Architecture architecture) {
  return architecture == Qwen3Architecture::kMoe ? "Qwen3MoeForCausalLM" : "Qwen3ForCausalLM";
}

bool Qwen3Config::IsSparseLayer(int layer) const {
  return num_experts > 0 && (layer + 1) % decoder_sparse_step == 0 &&
         std::find(mlp_only_layers.begin(), mlp_only_layers.end(), layer) == mlp_only_layers.end();
}

int Qwen3Config::NumSparseLayers() const {
  int count = 0;
  for (int layer = 0; layer < num_hidden_layers; ++layer) count += IsSparseLayer(layer) ? 1 : 0;
  return count;
}

int Qwen3Config::MaxContext() const {
  if (!rope_scaling.has_value()) return max_position_embeddings;
  return static_cast<int>(
      std::lround(rope_scaling->factor * rope_scaling->original_max_position_embeddings));
}

absl::Status Qwen3Config::Validate() const {
  // Status::Update keeps the first error, so the first bad field is the one that is named.
  absl::Status status = CheckRange("hidden_size", hidden_size, 1, limits::kMaxHiddenSize);
  status.Update(CheckRange("num_hidden_layers", num_hidden_layers, 1, limits::kMaxLayers));
  status.Update(
      CheckRange("num_attention_heads", num_attention_heads, 1, limits::kMaxAttentionHeads));
  status.Update(CheckRange("num_key_value_heads", num_key_value_heads, 1, num_attention_heads));
  if (status.ok() && num_attention_heads % num_key_value_heads != 0) {
    return errors::OutOfRange(
        "num_key_value_heads", num_key_value_heads,
        absl::StrCat("a divisor of ", num_attention_heads, " (num_attention_heads)"));
  }
  status.Update(CheckRange("head_dim", head_dim, 2, limits::kMaxHeadDim));
  if (status.ok() && head_dim % 2 != 0) {
    return errors::OutOfRange("head_dim", head_dim, "an even number, as RoPE turns pairs");
  }
  status.Update(CheckRange("vocab_size", vocab_size, 1, limits::kMaxVocabSize));
  status.Update(
      CheckRange("max_position_embeddings", max_position_embeddings, 1, limits::kMaxContextTokens));
  status.Update(CheckNumber("rms_norm_eps", rms_norm_eps, 1e-12, 1));
  status.Update(CheckNumber("rope_theta", rope_theta, 1, 1e12));
  if (rope_scaling.has_value()) status.Update(CheckYarn(*rope_scaling));
  status.Update(CheckExperts(*this));
  if (status.ok() && NumSparseLayers() < num_hidden_layers) {
    status = CheckRange("intermediate_size", intermediate_size, 1, limits::kMaxHiddenSize);
  }
  for (const int32_t id : eos_token_ids) {
    status.Update(CheckRange("eos_token_id", id, 0, vocab_size - 1));
  }
  return status;
}

}  // namespace conclave
