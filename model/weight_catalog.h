#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"

namespace conclave {

// Who loads a weight: the worker everything but the experts, a shard the experts it owns.
enum class WeightOwner { kWorker, kExpertShard };

// One weight that a config implies.
struct WeightSpec {
  std::string name;
  std::vector<int64_t> shape;  // [size] or [rows, cols] = [out_features, in_features]
  WeightOwner owner = WeightOwner::kWorker;
  int layer = -1;          // -1: outside the layers
  int expert = -1;         // -1: no expert's
  bool quantized = false;  // stored as FP8 blocks if the config says so
};

// Every weight of the model in the order of a forward pass. A tied lm_head is not listed.
std::vector<WeightSpec> WeightCatalog(const Qwen3Config& config);

// Names as in the checkpoint.
inline constexpr char kEmbedTokensName[] = "model.embed_tokens.weight";  // [vocab_size, hidden]
inline constexpr char kFinalNormName[] = "model.norm.weight";            // [hidden]
inline constexpr char kLmHeadName[] = "lm_head.weight";                  // [vocab_size, hidden]
// The weight whose rows give the logits: embed_tokens if tied.
const char* LmHeadName(const Qwen3Config& config);

// "model.layers.<layer>.<module>.weight"; modules: input_layernorm, post_attention_layernorm,
// self_attn.{q,k,v,o}_proj, self_attn.{q,k}_norm, mlp.{gate,up,down}_proj (dense),
// mlp.gate (sparse).
std::string LayerWeightName(int layer, absl::string_view module);
// "model.layers.<layer>.mlp.experts.<expert>.<proj>.weight"; proj: gate_proj, up_proj, down_proj.
std::string ExpertWeightName(int layer, int expert, absl::string_view proj);

// Checks, before anything is loaded, that the checkpoint holds every weight of the config with its
// shape and a dtype that ReadMatrix converts, scales of FP8 blocks included. DataLoss naming the
// first that is missing or wrong. Tensors that the config does not imply are ignored.
absl::Status CheckCatalog(const Checkpoint& checkpoint, const Qwen3Config& config);

}  // namespace conclave
