#include "worker/cuda/cuda_weights.h"

#include <string>
#include <utility>

#include "common/status_macros.h"
#include "expert_shard/cuda/device_weights.h"
#include "model/weight_catalog.h"

namespace conclave {
namespace {

using Modules = std::vector<std::pair<const char*, int64_t>>;

// Walks through a worker's weights; with a builder that has no source it only counts their bytes.
class Walk {
 public:
  Walk(const Qwen3Config& config, DeviceWeightBuilder& builder)
      : config_(config), builder_(builder) {}

  // `progress` may be empty.
  absl::Status Run(const std::function<absl::Status()>& progress, CudaWeights& out) {
    const int64_t hidden = config_.hidden_size;
    cuda::DeviceMatrix embedding;
    RETURN_IF_ERROR(Vocabulary(kEmbedTokensName, &embedding));
    out.embed_tokens = static_cast<const BFloat16*>(embedding.values);
    out.layers.resize(config_.num_hidden_layers);
    for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
      RETURN_IF_ERROR(Layer(layer, out.layers[layer]));
      if (progress) RETURN_IF_ERROR(progress());
    }
    RETURN_IF_ERROR(builder_.Norm(kFinalNormName, hidden, &out.norm));
    out.lm_head = embedding;
    return config_.tie_word_embeddings ? absl::OkStatus() : Vocabulary(kLmHeadName, &out.lm_head);
  }

 private:
  absl::Status Vocabulary(const char* name, cuda::DeviceMatrix* out) {
    return builder_.Matrix({{WeightPart{name, config_.vocab_size}}}, config_.hidden_size,
                           /*may_be_fp8=*/false, out);
  }

  absl::Status Stack(int layer, const Modules& modules, int64_t cols, bool may_be_fp8,
                     cuda::DeviceMatrix* out) {
    std::vector<WeightPart> parts;
    for (const auto& [module, rows] : modules) {
      parts.push_back({LayerWeightName(layer, module), rows});
    }
    return builder_.Matrix({std::move(parts)}, cols, may_be_fp8, out);
  }

  absl::Status Layer(int layer, CudaLayerWeights& out) {
    const int64_t hidden = config_.hidden_size;
    const int64_t q_rows = int64_t{config_.num_attention_heads} * config_.head_dim;
    const int64_t kv_rows = int64_t{config_.num_key_value_heads} * config_.head_dim;
    const auto norm = [&](const char* module, int64_t size, const float** to) {
      return builder_.Norm(LayerWeightName(layer, module), size, to);
    };
    RETURN_IF_ERROR(norm("input_layernorm", hidden, &out.input_layernorm));
    RETURN_IF_ERROR(norm("post_attention_layernorm", hidden, &out.post_attention_layernorm));
    RETURN_IF_ERROR(norm("self_attn.q_norm", config_.head_dim, &out.q_norm));
    RETURN_IF_ERROR(norm("self_attn.k_norm", config_.head_dim, &out.k_norm));
    RETURN_IF_ERROR(Stack(layer,
                          {{"self_attn.q_proj", q_rows},
                           {"self_attn.k_proj", kv_rows},
                           {"self_attn.v_proj", kv_rows}},
                          hidden, true, &out.qkv_proj));
    RETURN_IF_ERROR(Stack(layer, {{"self_attn.o_proj", hidden}}, q_rows, true, &out.o_proj));
    if (config_.IsSparseLayer(layer)) {
      return Stack(layer, {{"mlp.gate", config_.num_experts}}, hidden, false, &out.gate);
    }
    const int64_t width = config_.intermediate_size;
    RETURN_IF_ERROR(Stack(layer, {{"mlp.gate_proj", width}, {"mlp.up_proj", width}}, hidden, true,
                          &out.gate_up_proj));
    return Stack(layer, {{"mlp.down_proj", hidden}}, width, true, &out.down_proj);
  }

  const Qwen3Config& config_;
  DeviceWeightBuilder& builder_;
};

}  // namespace

int64_t CudaWeightBytes(const Qwen3Config& config) {
  DeviceWeightBuilder builder(config, nullptr);
  CudaWeights counted;
  return Walk(config, builder).Run({}, counted).ok() ? builder.bytes() : 0;
}

absl::StatusOr<CudaWeights> LoadCudaWeights(const Checkpoint* checkpoint, const Qwen3Config& config,
                                            absl::Span<const int> expert_ids,
                                            const LoadProgress& progress) {
  ASSIGN_OR_RETURN(const std::unique_ptr<DeviceWeightSource> source, OpenWeightSource(checkpoint));
  const int64_t worker_bytes = CudaWeightBytes(config);
  const int64_t total = worker_bytes + CudaExpertBytes(config, static_cast<int>(expert_ids.size()));
  DeviceWeightBuilder builder(config, source.get());
  CudaWeights weights;
  const auto tell = [&](int64_t done) {
    return !progress || progress(done, total) ? absl::OkStatus()
                                              : absl::CancelledError("loading was given up");
  };
  const absl::Status built =
      Walk(config, builder).Run([&] { return tell(builder.bytes()); }, weights);
  // Copies under way must not outlive what they copy to.
  const absl::Status finished = source->Finish();
  RETURN_IF_ERROR(built);
  RETURN_IF_ERROR(finished);
  weights.memory = builder.TakeMemory();
  if (!expert_ids.empty()) {
    ASSIGN_OR_RETURN(weights.experts,
                     LoadCudaExperts(*source, config, expert_ids, [&](size_t done, size_t) {
                       return tell(worker_bytes + static_cast<int64_t>(done)).ok();
                     }));
  }
  return weights;
}

}  // namespace conclave
