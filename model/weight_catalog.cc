#include "model/weight_catalog.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/weight_reader.h"

namespace conclave {
namespace {

// Appends the weights of one decoder layer (Qwen3DecoderLayer, Qwen3MoeDecoderLayer).
class LayerLister {
 public:
  LayerLister(const Qwen3Config& config, int layer, std::vector<WeightSpec>* specs)
      : config_(config), layer_(layer), specs_(specs) {}

  void List() {
    const int64_t hidden = config_.hidden_size;
    const int64_t head_dim = config_.head_dim;
    const int64_t q_size = config_.num_attention_heads * head_dim;
    const int64_t kv_size = config_.num_key_value_heads * head_dim;
    Add("input_layernorm", {hidden}, false);
    Add("self_attn.q_proj", {q_size, hidden}, true);
    Add("self_attn.k_proj", {kv_size, hidden}, true);
    Add("self_attn.v_proj", {kv_size, hidden}, true);
    Add("self_attn.q_norm", {head_dim}, false);
    Add("self_attn.k_norm", {head_dim}, false);
    Add("self_attn.o_proj", {hidden, q_size}, true);
    Add("post_attention_layernorm", {hidden}, false);
    if (!config_.IsSparseLayer(layer_)) {
      Add("mlp.gate_proj", {config_.intermediate_size, hidden}, true);
      Add("mlp.up_proj", {config_.intermediate_size, hidden}, true);
      Add("mlp.down_proj", {hidden, config_.intermediate_size}, true);
      return;
    }
    Add("mlp.gate", {config_.num_experts, hidden}, false);
    for (int expert = 0; expert < config_.num_experts; ++expert) {
      AddExpert(expert, "gate_proj", {config_.moe_intermediate_size, hidden});
      AddExpert(expert, "up_proj", {config_.moe_intermediate_size, hidden});
      AddExpert(expert, "down_proj", {hidden, config_.moe_intermediate_size});
    }
  }

 private:
  void Add(absl::string_view module, std::vector<int64_t> shape, bool quantized) {
    specs_->push_back({LayerWeightName(layer_, module), std::move(shape), WeightOwner::kWorker,
                       layer_, -1, quantized});
  }
  void AddExpert(int expert, absl::string_view proj, std::vector<int64_t> shape) {
    specs_->push_back({ExpertWeightName(layer_, expert, proj), std::move(shape),
                       WeightOwner::kExpertShard, layer_, expert, true});
  }

  const Qwen3Config& config_;
  const int layer_;
  std::vector<WeightSpec>* const specs_;
};

}  // namespace

std::vector<WeightSpec> WeightCatalog(const Qwen3Config& config) {
  const std::vector<int64_t> embed_shape = {config.vocab_size, config.hidden_size};
  std::vector<WeightSpec> specs;
  specs.push_back({kEmbedTokensName, embed_shape});
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    LayerLister(config, layer, &specs).List();
  }
  specs.push_back({kFinalNormName, {config.hidden_size}});
  if (!config.tie_word_embeddings) specs.push_back({kLmHeadName, embed_shape});
  return specs;
}

const char* LmHeadName(const Qwen3Config& config) {
  return config.tie_word_embeddings ? kEmbedTokensName : kLmHeadName;
}

std::string LayerWeightName(int layer, absl::string_view module) {
  return absl::StrCat("model.layers.", layer, ".", module, ".weight");
}

std::string ExpertWeightName(int layer, int expert, absl::string_view proj) {
  return absl::StrCat("model.layers.", layer, ".mlp.experts.", expert, ".", proj, ".weight");
}

absl::Status CheckCatalog(const Checkpoint& checkpoint, const Qwen3Config& config) {
  for (const WeightSpec& spec : WeightCatalog(config)) {
    RETURN_IF_ERROR(CheckWeight(checkpoint, spec.name, spec.shape));
  }
  return absl::OkStatus();
}

}  // namespace conclave
