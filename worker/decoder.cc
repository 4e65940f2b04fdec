#include "worker/decoder.h"

#include <cmath>
#include <cstring>

#include "absl/time/clock.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/linear.h"
#include "kernels/moe_combine.h"
#include "kernels/moe_gate.h"
#include "kernels/norm_rope.h"
#include "kernels/rms_norm.h"
#include "kernels/swiglu.h"
#include "worker/rope.h"

namespace conclave {

Decoder::Decoder(const Qwen3Config& config, const WorkerWeights& weights, KvCache& kv_cache,
                 const Device& device, ExpertExchange* experts)
    : config_(config),
      weights_(weights),
      kv_cache_(kv_cache),
      device_(device),
      experts_(experts),
      rope_(MakeRope(config)) {
  CHECK(config.NumSparseLayers() == 0 || experts != nullptr) << "sparse layers need experts";
}

absl::Status Decoder::Forward(const StepBatch& batch) {
  times_ = StepTimes();
  const auto num_tokens = static_cast<int64_t>(batch.ids.size());
  const int64_t hidden = config_.hidden_size;
  residual_.resize(num_tokens * hidden);
  for (int64_t token = 0; token < num_tokens; ++token) {
    CHECK_LT(batch.ids[token], static_cast<uint32_t>(config_.vocab_size));
    const BFloat16* row = weights_.embed_tokens->row(batch.ids[token]);
    float* out = residual_.data() + token * hidden;
    for (int64_t i = 0; i < hidden; ++i) out[i] = ToFloat(row[i]);
  }
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
    const absl::Time start = absl::Now();
    RETURN_IF_ERROR(AttentionLayer(batch, layer));
    times_.attention += absl::Now() - start;
    RETURN_IF_ERROR(config_.IsSparseLayer(layer) ? SparseMlp(layer, num_tokens)
                                                 : DenseMlp(layer, num_tokens));
  }
  const auto num_logit_rows = static_cast<int64_t>(batch.logit_rows.size());
  last_residual_.resize(num_logit_rows * hidden);
  for (int64_t i = 0; i < num_logit_rows; ++i) {
    std::memcpy(last_residual_.data() + i * hidden, residual_.data() + batch.logit_rows[i] * hidden,
                hidden * sizeof(float));
  }
  return NormInto(last_residual_.data(), num_logit_rows, weights_.norm, last_hidden_);
}

absl::Status Decoder::NormInto(const float* input, int64_t num_rows,
                               const std::vector<float>& weight, std::vector<BFloat16>& output) {
  output.resize(num_rows * config_.hidden_size);
  return RmsNorm({.input = input,
                  .weight = weight.data(),
                  .output = output.data(),
                  .num_rows = num_rows,
                  .hidden_size = config_.hidden_size,
                  .rms_norm_eps = static_cast<float>(config_.rms_norm_eps)},
                 device_);
}

absl::Status Decoder::AttentionLayer(const StepBatch& batch, int layer) {
  const LayerWeights& weights = weights_.layers[layer];
  const auto num_tokens = static_cast<int64_t>(batch.ids.size());
  const int64_t q_width = int64_t{config_.num_attention_heads} * config_.head_dim;
  RETURN_IF_ERROR(NormInto(residual_.data(), num_tokens, weights.input_layernorm, hidden_states_));
  qkv_.resize(num_tokens * weights.qkv_proj.out_features());
  RETURN_IF_ERROR(Linear({.input = hidden_states_.data(),
                          .weight = &weights.qkv_proj,
                          .output = qkv_.data(),
                          .num_rows = num_tokens},
                         device_));
  q_.resize(num_tokens * q_width);
  RETURN_IF_ERROR(NormRope({.qkv = qkv_.data(),
                            .q_norm = weights.q_norm.data(),
                            .k_norm = weights.k_norm.data(),
                            .rope = &rope_,
                            .positions = batch.positions.data(),
                            .slot_mapping = batch.slot_mapping.data(),
                            .q = q_.data(),
                            .kv_cache = kv_cache_.Layer(layer),
                            .num_tokens = num_tokens,
                            .num_attention_heads = config_.num_attention_heads,
                            .rms_norm_eps = static_cast<float>(config_.rms_norm_eps)},
                           device_));
  attention_.resize(num_tokens * q_width);
  RETURN_IF_ERROR(Attention({.q = q_.data(),
                             .kv_cache = kv_cache_.Layer(layer),
                             .sequences = batch.sequences,
                             .output = attention_.data(),
                             .num_attention_heads = config_.num_attention_heads,
                             .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim))},
                            device_));
  RETURN_IF_ERROR(Linear({.input = attention_.data(),
                          .weight = &weights.o_proj,
                          .output = residual_.data(),
                          .num_rows = num_tokens,
                          .accumulate = true},
                         device_));
  return NormInto(residual_.data(), num_tokens, weights.post_attention_layernorm, hidden_states_);
}

absl::Status Decoder::DenseMlp(int layer, int64_t num_tokens) {
  const absl::Time start = absl::Now();
  const LayerWeights& weights = weights_.layers[layer];
  const int64_t width = config_.intermediate_size;
  gate_up_.resize(num_tokens * 2 * width);
  RETURN_IF_ERROR(Linear({.input = hidden_states_.data(),
                          .weight = &weights.gate_up_proj,
                          .output = gate_up_.data(),
                          .num_rows = num_tokens},
                         device_));
  intermediate_.resize(num_tokens * width);
  RETURN_IF_ERROR(SwiGlu({.gate_up = gate_up_.data(),
                          .output = intermediate_.data(),
                          .num_rows = num_tokens,
                          .intermediate_size = width},
                         device_));
  RETURN_IF_ERROR(Linear({.input = intermediate_.data(),
                          .weight = &weights.down_proj,
                          .output = residual_.data(),
                          .num_rows = num_tokens,
                          .accumulate = true},
                         device_));
  times_.mlp += absl::Now() - start;
  return absl::OkStatus();
}

absl::Status Decoder::SparseMlp(int layer, int64_t num_tokens) {
  const absl::Time start = absl::Now();
  const LayerWeights& weights = weights_.layers[layer];
  const int top_k = config_.num_experts_per_tok;
  gate_logits_.resize(num_tokens * config_.num_experts);
  RETURN_IF_ERROR(Linear({.input = hidden_states_.data(),
                          .weight = &weights.gate,
                          .output = gate_logits_.data(),
                          .num_rows = num_tokens},
                         device_));
  topk_ids_.resize(num_tokens * top_k);
  topk_weights_.resize(num_tokens * top_k);
  RETURN_IF_ERROR(MoeGate({.gate_logits = gate_logits_.data(),
                           .topk_ids = topk_ids_.data(),
                           .topk_weights = topk_weights_.data(),
                           .num_tokens = num_tokens,
                           .num_experts = config_.num_experts,
                           .num_experts_per_tok = top_k,
                           .norm_topk_prob = config_.norm_topk_prob},
                          device_));
  const absl::Time dispatched = absl::Now();
  expert_rows_.resize(num_tokens * top_k);
  RETURN_IF_ERROR(experts_->Run({.layer = layer,
                                 .hidden_states = hidden_states_.data(),
                                 .topk_ids = topk_ids_.data(),
                                 .num_rows = num_tokens},
                                expert_rows_));
  const absl::Time combined = absl::Now();
  RETURN_IF_ERROR(MoeCombine({.expert_rows = expert_rows_.data(),
                              .topk_weights = topk_weights_.data(),
                              .residual = residual_.data(),
                              .num_tokens = num_tokens,
                              .num_experts_per_tok = top_k,
                              .hidden_size = config_.hidden_size},
                             device_));
  times_.experts += combined - dispatched;
  times_.mlp += (dispatched - start) + (absl::Now() - combined);
  return absl::OkStatus();
}

absl::Status Decoder::Logits(int64_t first, int64_t count, float* logits) {
  return Linear({.input = last_hidden_.data() + first * config_.hidden_size,
                 .weight = &weights_.lm_head,
                 .output = logits,
                 .num_rows = count},
                device_);
}

}  // namespace conclave
