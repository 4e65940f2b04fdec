#include "worker/weights.h"

#include <initializer_list>
#include <utility>

#include "absl/strings/string_view.h"
#include "common/status_macros.h"
#include "expert_shard/weight_loader.h"
#include "model/memory_plan.h"
#include "model/weight_catalog.h"

namespace conclave {
namespace {

struct Module {
  absl::string_view name;
  int64_t rows;
};

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, WeightDtype dtype, ThreadPool* pool)
      : checkpoint_(checkpoint), dtype_(dtype), pool_(pool) {}

  // The named matrices of one layer, stacked in order.
  absl::StatusOr<PackedMatrix> Packed(int layer, std::initializer_list<Module> modules,
                                      int64_t cols) {
    return PackedAs(dtype_, layer, modules, cols);
  }

  absl::StatusOr<PackedMatrix> PackedAs(WeightDtype dtype, int layer,
                                        std::initializer_list<Module> modules, int64_t cols) {
    std::vector<MatrixPart> parts;
    for (const Module& module : modules) {
      parts.push_back({LayerWeightName(layer, module.name), module.rows});
    }
    return LoadPacked(checkpoint_, parts, cols, dtype, pool_);
  }

  absl::StatusOr<std::vector<float>> Norm(absl::string_view name, int64_t size) {
    ASSIGN_OR_RETURN(const std::vector<BFloat16> values, ReadVector(checkpoint_, name, size));
    std::vector<float> widened(values.size());
    for (size_t i = 0; i < values.size(); ++i) widened[i] = ToFloat(values[i]);
    return widened;
  }

 private:
  const Checkpoint& checkpoint_;
  const WeightDtype dtype_;
  ThreadPool* const pool_;
};

absl::StatusOr<LayerWeights> LoadLayer(Loader& loader, const Qwen3Config& config, int layer) {
  const int64_t hidden = config.hidden_size;
  const int64_t q_rows = int64_t{config.num_attention_heads} * config.head_dim;
  const int64_t kv_rows = int64_t{config.num_key_value_heads} * config.head_dim;
  LayerWeights weights;
  ASSIGN_OR_RETURN(weights.input_layernorm,
                   loader.Norm(LayerWeightName(layer, "input_layernorm"), hidden));
  ASSIGN_OR_RETURN(weights.qkv_proj, loader.Packed(layer,
                                                   {{"self_attn.q_proj", q_rows},
                                                    {"self_attn.k_proj", kv_rows},
                                                    {"self_attn.v_proj", kv_rows}},
                                                   hidden));
  ASSIGN_OR_RETURN(weights.q_norm,
                   loader.Norm(LayerWeightName(layer, "self_attn.q_norm"), config.head_dim));
  ASSIGN_OR_RETURN(weights.k_norm,
                   loader.Norm(LayerWeightName(layer, "self_attn.k_norm"), config.head_dim));
  ASSIGN_OR_RETURN(weights.o_proj, loader.Packed(layer, {{"self_attn.o_proj", hidden}}, q_rows));
  ASSIGN_OR_RETURN(weights.post_attention_layernorm,
                   loader.Norm(LayerWeightName(layer, "post_attention_layernorm"), hidden));
  if (config.IsSparseLayer(layer)) {
    // An error that swaps two experts changes the whole output, and the gate is small.
    ASSIGN_OR_RETURN(weights.gate, loader.PackedAs(WeightDtype::kBf16, layer,
                                                   {{"mlp.gate", config.num_experts}}, hidden));
    return weights;
  }
  const int64_t width = config.intermediate_size;
  ASSIGN_OR_RETURN(
      weights.gate_up_proj,
      loader.Packed(layer, {{"mlp.gate_proj", width}, {"mlp.up_proj", width}}, hidden));
  ASSIGN_OR_RETURN(weights.down_proj, loader.Packed(layer, {{"mlp.down_proj", hidden}}, width));
  return weights;
}

}  // namespace

absl::StatusOr<WorkerWeights> LoadWorkerWeights(const Checkpoint& checkpoint,
                                                const Qwen3Config& config, WeightDtype dtype,
                                                ThreadPool* pool,
                                                const std::function<void(int, int)>& progress) {
  Loader loader(checkpoint, dtype, pool);
  WorkerWeights weights;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    ASSIGN_OR_RETURN(LayerWeights loaded, LoadLayer(loader, config, layer));
    weights.layers.push_back(std::move(loaded));
    progress(layer + 1, config.num_hidden_layers);
  }
  ASSIGN_OR_RETURN(weights.norm, loader.Norm(kFinalNormName, config.hidden_size));
  const MatrixPart lm_head{LmHeadName(config), config.vocab_size};
  ASSIGN_OR_RETURN(weights.lm_head, LoadPacked(checkpoint, {&lm_head, 1}, config.hidden_size,
                                               LmHeadDtype(dtype), pool));
  ASSIGN_OR_RETURN(
      MatrixSource embed_tokens,
      ReadMatrix(checkpoint, kEmbedTokensName, config.vocab_size, config.hidden_size, pool));
  weights.embed_tokens.emplace(std::move(embed_tokens));
  return weights;
}

}  // namespace conclave
