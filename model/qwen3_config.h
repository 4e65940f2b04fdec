#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace conclave {

enum class Qwen3Architecture { kDense, kMoe };

// "Qwen3ForCausalLM" or "Qwen3MoeForCausalLM", as in config.json's "architectures".
absl::string_view ArchitectureName(Qwen3Architecture architecture);

// How the projections (not embeddings, norms, gates or lm_head) are stored.
enum class WeightQuantization {
  kNone,         // BF16, F16 or F32
  kFp8Block128,  // E4M3 with one scale per 128 x 128 block in "<name>_scale_inv"
};

// rope_scaling of type yarn, every default filled in as Hugging Face transformers does
// (_compute_yarn_parameters in modeling_rope_utils.py).
struct YarnScaling {
  double factor = 1;  // context grows from the original length to factor times that
  int original_max_position_embeddings = 0;
  double attention_factor = 1;  // multiplies cos and sin; 0.1 ln(factor) + 1 unless stated
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;  // round the ramp's ends to whole dimensions
  friend bool operator==(const YarnScaling&, const YarnScaling&) = default;
};

// Shape of a Qwen3 checkpoint. Fields keep the names of config.json: one search finds both.
struct Qwen3Config {
  Qwen3Architecture architecture = Qwen3Architecture::kDense;
  int hidden_size = 0;        // width of the residual stream
  int intermediate_size = 0;  // width of a dense layer's MLP
  int num_hidden_layers = 0;
  int num_attention_heads = 0;  // query heads; a multiple of num_key_value_heads
  int num_key_value_heads = 0;
  int head_dim = 0;                 // read it: need not be hidden_size / num_attention_heads
  int vocab_size = 0;               // rows of the embedding, padding included
  int max_position_embeddings = 0;  // see MaxContext()
  double rms_norm_eps = 1e-6;
  double rope_theta = 1e6;
  std::optional<YarnScaling> rope_scaling;
  bool tie_word_embeddings = false;  // lm_head is embed_tokens
  std::string torch_dtype = "bfloat16";

  int num_experts = 0;            // 0: dense model
  int num_experts_per_tok = 0;    // top-k of the gate
  int moe_intermediate_size = 0;  // width of one expert
  bool norm_topk_prob = true;     // the k routing weights are scaled to add up to 1
  int decoder_sparse_step = 1;
  std::vector<int> mlp_only_layers;

  WeightQuantization quantization = WeightQuantization::kNone;
  std::vector<int32_t> eos_token_ids;  // config.json's; generation_config.json's have precedence

  // True if the layer's MLP is a mixture of experts (Qwen3MoeDecoderLayer.__init__).
  bool IsSparseLayer(int layer) const;
  int NumSparseLayers() const;

  // Tokens of prompt and output together: max_position_embeddings, or with YaRN what the scaling
  // reaches (factor * original_max_position_embeddings: 4 * 32,768 = 131,072).
  int MaxContext() const;

  // InvalidArgument naming the first field that cannot be served, its value and what can be.
  absl::Status Validate() const;

  friend bool operator==(const Qwen3Config&, const Qwen3Config&) = default;
};

// Reads the text of a config.json, in the classic form (rope_theta, rope_scaling) or
// transformers 5's (rope_parameters, dtype), and validates it.
// InvalidArgument: not JSON, a field missing or of the wrong type, or a model that cannot be
// served (another architecture, attention_bias, a sliding window in use, another activation or
// quantization).
absl::StatusOr<Qwen3Config> ParseQwen3Config(absl::string_view json);

// Parses model_dir/config.json. NotFound if there is none; otherwise as ParseQwen3Config, with
// the path in the message.
absl::StatusOr<Qwen3Config> LoadQwen3Config(const std::string& model_dir);

// The text of a config.json that ParseQwen3Config reads back as an equal config.
std::string FormatQwen3Config(const Qwen3Config& config);

}  // namespace conclave
