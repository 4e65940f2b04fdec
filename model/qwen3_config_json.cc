// config.json to Qwen3Config and back; the checks of values are in qwen3_config.cc.
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "model/json_fields.h"
#include "model/qwen3_config.h"
#include "nlohmann/json.hpp"

namespace conclave {
namespace {

absl::StatusOr<Qwen3Architecture> ReadArchitecture(const JsonFields& fields) {
  for (const Qwen3Architecture known : {Qwen3Architecture::kDense, Qwen3Architecture::kMoe}) {
    const std::string name(ArchitectureName(known));
    if (fields.Has("architectures")) {
      if (fields["architectures"] == nlohmann::json::array({name})) return known;
    } else if (fields.Has("model_type")) {
      if (fields["model_type"] == (known == Qwen3Architecture::kMoe ? "qwen3_moe" : "qwen3")) {
        return known;
      }
    }
  }
  if (fields.Has("architectures")) {
    return fields.Bad("architectures", "[\"Qwen3ForCausalLM\"] or [\"Qwen3MoeForCausalLM\"]");
  }
  RETURN_IF_ERROR(fields.Require("model_type"));
  return fields.Bad("model_type", "qwen3 or qwen3_moe");
}

// Variants of the architecture that no Qwen3 release uses and that would give wrong tokens.
absl::Status RejectUnserved(const JsonFields& fields, const Qwen3Config& config) {
  bool attention_bias = false, use_sliding_window = false;
  std::string hidden_act = "silu";
  RETURN_IF_ERROR(fields.Read("attention_bias", &attention_bias));
  RETURN_IF_ERROR(fields.Read("use_sliding_window", &use_sliding_window));
  RETURN_IF_ERROR(fields.Read("hidden_act", &hidden_act));
  if (attention_bias) return fields.Bad("attention_bias", "false");
  if (hidden_act != "silu") return fields.Bad("hidden_act", "silu");
  // transformers: layers from max_window_layers on slide (dense), every layer (MoE).
  int max_window_layers = 0;
  RETURN_IF_ERROR(fields.Read("max_window_layers", &max_window_layers));
  const bool no_layer_slides = config.architecture == Qwen3Architecture::kDense &&
                               max_window_layers >= config.num_hidden_layers;
  if (use_sliding_window && fields.Has("sliding_window") && !no_layer_slides) {
    return fields.Bad("use_sliding_window", "false: every layer sees the whole context");
  }
  if (fields.Has("layer_types")) {
    for (const nlohmann::json& type : fields["layer_types"]) {
      if (type != "full_attention") return fields.Bad("layer_types", "full_attention alone");
    }
  }
  return absl::OkStatus();
}

double YarnAttentionFactor(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

// Defaults as _compute_yarn_parameters in transformers' modeling_rope_utils.py.
absl::StatusOr<YarnScaling> ReadYarn(const JsonFields& fields, int max_position_embeddings) {
  YarnScaling yarn;
  yarn.original_max_position_embeddings = max_position_embeddings;
  RETURN_IF_ERROR(
      fields.Read("original_max_position_embeddings", &yarn.original_max_position_embeddings));
  if (!fields.Has("factor") && fields.Has("original_max_position_embeddings") &&
      yarn.original_max_position_embeddings > 0) {
    yarn.factor =
        static_cast<double>(max_position_embeddings) / yarn.original_max_position_embeddings;
  } else {
    RETURN_IF_ERROR(fields.Require("factor"));
    RETURN_IF_ERROR(fields.Read("factor", &yarn.factor));
  }
  RETURN_IF_ERROR(fields.Read("beta_fast", &yarn.beta_fast));
  RETURN_IF_ERROR(fields.Read("beta_slow", &yarn.beta_slow));
  RETURN_IF_ERROR(fields.Read("truncate", &yarn.truncate));
  double mscale = 0, mscale_all_dim = 0;
  RETURN_IF_ERROR(fields.Read("mscale", &mscale));
  RETURN_IF_ERROR(fields.Read("mscale_all_dim", &mscale_all_dim));
  yarn.attention_factor = mscale != 0 && mscale_all_dim != 0
                              ? YarnAttentionFactor(yarn.factor, mscale) /
                                    YarnAttentionFactor(yarn.factor, mscale_all_dim)
                              : YarnAttentionFactor(yarn.factor, 1);
  RETURN_IF_ERROR(fields.Read("attention_factor", &yarn.attention_factor));
  return yarn;
}

// rope_theta and rope_scaling (transformers 4), or both in rope_parameters (transformers 5).
absl::Status ReadRope(const JsonFields& fields, Qwen3Config* config) {
  RETURN_IF_ERROR(fields.Read("rope_theta", &config->rope_theta));
  const char* name = fields.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!fields.Has(name)) return absl::OkStatus();
  if (!fields[name].is_object()) return fields.Bad(name, "an object or null");
  const JsonFields rope(fields[name], absl::StrCat(name, "."));
  RETURN_IF_ERROR(rope.Read("rope_theta", &config->rope_theta));
  const char* type_name = rope.Has("rope_type") ? "rope_type" : "type";
  std::string type;
  RETURN_IF_ERROR(rope.Require(type_name));
  RETURN_IF_ERROR(rope.Read(type_name, &type));
  if (type == "default") return absl::OkStatus();
  if (type != "yarn") return rope.Bad(type_name, "default or yarn");
  ASSIGN_OR_RETURN(config->rope_scaling, ReadYarn(rope, config->max_position_embeddings));
  return absl::OkStatus();
}

absl::Status ReadQuantization(const JsonFields& fields, Qwen3Config* config) {
  if (!fields.Has("quantization_config")) return absl::OkStatus();
  if (!fields["quantization_config"].is_object()) {
    return fields.Bad("quantization_config", "an object or null");
  }
  const JsonFields quantization(fields["quantization_config"], "quantization_config.");
  std::string quant_method, fmt = "e4m3";
  std::vector<int> weight_block_size;
  RETURN_IF_ERROR(quantization.Require("quant_method"));
  RETURN_IF_ERROR(quantization.Read("quant_method", &quant_method));
  if (quant_method != "fp8") return quantization.Bad("quant_method", "fp8");
  RETURN_IF_ERROR(quantization.Read("fmt", &fmt));
  if (fmt != "e4m3") return quantization.Bad("fmt", "e4m3");
  RETURN_IF_ERROR(quantization.Require("weight_block_size"));
  RETURN_IF_ERROR(quantization.Read("weight_block_size", &weight_block_size));
  if (weight_block_size != std::vector<int>{128, 128}) {
    return quantization.Bad("weight_block_size", "[128,128]");
  }
  config->quantization = WeightQuantization::kFp8Block128;
  return absl::OkStatus();
}

absl::Status ReadShape(const JsonFields& fields, Qwen3Config* config) {
  struct Field {
    const char* name;
    int* value;
  };
  std::vector<Field> required = {
      {"hidden_size", &config->hidden_size},
      {"num_hidden_layers", &config->num_hidden_layers},
      {"num_attention_heads", &config->num_attention_heads},
      {"num_key_value_heads", &config->num_key_value_heads},
      {"vocab_size", &config->vocab_size},
      {"max_position_embeddings", &config->max_position_embeddings},
  };
  if (config->architecture == Qwen3Architecture::kMoe) {
    required.push_back({"num_experts", &config->num_experts});
    required.push_back({"num_experts_per_tok", &config->num_experts_per_tok});
    required.push_back({"moe_intermediate_size", &config->moe_intermediate_size});
    RETURN_IF_ERROR(fields.Read("decoder_sparse_step", &config->decoder_sparse_step));
    RETURN_IF_ERROR(fields.Read("mlp_only_layers", &config->mlp_only_layers));
    config->norm_topk_prob = false;  // transformers' default; every release says true
    RETURN_IF_ERROR(fields.Read("norm_topk_prob", &config->norm_topk_prob));
    RETURN_IF_ERROR(fields.Read("intermediate_size", &config->intermediate_size));
  } else {
    required.push_back({"intermediate_size", &config->intermediate_size});
  }
  for (const Field& field : required) {
    RETURN_IF_ERROR(fields.Require(field.name));
    RETURN_IF_ERROR(fields.Read(field.name, field.value));
  }
  // Every release states head_dim; without it transformers takes 128 or the quotient.
  config->head_dim =
      config->architecture == Qwen3Architecture::kDense || config->num_attention_heads <= 0
          ? 128
          : config->hidden_size / config->num_attention_heads;
  return fields.Read("head_dim", &config->head_dim);
}

}  // namespace

absl::StatusOr<Qwen3Config> ParseQwen3Config(absl::string_view json) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(json));
  const JsonFields fields(object);
  Qwen3Config config;
  ASSIGN_OR_RETURN(config.architecture, ReadArchitecture(fields));
  RETURN_IF_ERROR(ReadShape(fields, &config));
  RETURN_IF_ERROR(RejectUnserved(fields, config));
  RETURN_IF_ERROR(fields.Read("rms_norm_eps", &config.rms_norm_eps));
  RETURN_IF_ERROR(fields.Read("tie_word_embeddings", &config.tie_word_embeddings));
  RETURN_IF_ERROR(fields.Read("torch_dtype", &config.torch_dtype));
  RETURN_IF_ERROR(fields.Read("dtype", &config.torch_dtype));  // its name in transformers 5
  RETURN_IF_ERROR(fields.Read("eos_token_id", &config.eos_token_ids));
  RETURN_IF_ERROR(ReadRope(fields, &config));
  RETURN_IF_ERROR(ReadQuantization(fields, &config));
  RETURN_IF_ERROR(config.Validate());
  return config;
}

absl::StatusOr<Qwen3Config> LoadQwen3Config(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/config.json");
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  absl::StatusOr<Qwen3Config> config = ParseQwen3Config(text);
  if (config.ok()) return config;
  return absl::Status(config.status().code(), absl::StrCat(path, ": ", config.status().message()));
}

std::string FormatQwen3Config(const Qwen3Config& config) {
  const bool moe = config.architecture == Qwen3Architecture::kMoe;
  nlohmann::ordered_json json = {
      {"architectures",
       nlohmann::ordered_json::array({std::string(ArchitectureName(config.architecture))})},
      {"model_type", moe ? "qwen3_moe" : "qwen3"},
      {"attention_bias", false},
      {"hidden_act", "silu"},
      {"hidden_size", config.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"num_hidden_layers", config.num_hidden_layers},
      {"num_attention_heads", config.num_attention_heads},
      {"num_key_value_heads", config.num_key_value_heads},
      {"head_dim", config.head_dim},
      {"vocab_size", config.vocab_size},
      {"max_position_embeddings", config.max_position_embeddings},
      {"rms_norm_eps", config.rms_norm_eps},
      {"rope_theta", config.rope_theta},
      {"rope_scaling", nullptr},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"torch_dtype", config.torch_dtype},
      {"use_sliding_window", false},
      {"eos_token_id", config.eos_token_ids},
  };
  if (config.rope_scaling.has_value()) {
    const YarnScaling& yarn = *config.rope_scaling;
    json["rope_scaling"] = {
        {"rope_type", "yarn"},
        {"factor", yarn.factor},
        {"original_max_position_embeddings", yarn.original_max_position_embeddings},
        {"attention_factor", yarn.attention_factor},
        {"beta_fast", yarn.beta_fast},
        {"beta_slow", yarn.beta_slow},
        {"truncate", yarn.truncate}};
  }
  if (moe) {
    json["num_experts"] = config.num_experts;
    json["num_experts_per_tok"] = config.num_experts_per_tok;
    json["moe_intermediate_size"] = config.moe_intermediate_size;
    json["norm_topk_prob"] = config.norm_topk_prob;
    json["decoder_sparse_step"] = config.decoder_sparse_step;
    json["mlp_only_layers"] = config.mlp_only_layers;
  }
  if (config.quantization == WeightQuantization::kFp8Block128) {
    json["quantization_config"] = {{"quant_method", "fp8"},
                                   {"fmt", "e4m3"},
                                   {"activation_scheme", "dynamic"},
                                   {"weight_block_size", {128, 128}}};
  }
  return absl::StrCat(json.dump(2), "\n");
}

}  // namespace conclave
