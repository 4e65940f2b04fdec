#include "worker/decoder.h"

#include <algorithm>
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
#include "worker/rope.h"

namespace conclave {

Decoder::Decoder(const Qwen3Config& config, const WorkerWeights& weights, KvCache& kv_cache,
                 const Device& device, ExpertExchange* experts, MicroBatchMode micro_batch)
    : config_(config),
      weights_(weights),
      kv_cache_(kv_cache),
      device_(device),
      experts_(experts),
      overlapping_(experts == nullptr ? nullptr : experts->overlapping()),
      micro_batch_policy_(overlapping_ == nullptr ? MicroBatchMode::kOff : micro_batch),
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
  hidden_states_.resize(num_tokens * hidden);
  topk_ids_.resize(num_tokens * config_.num_experts_per_tok);
  topk_weights_.resize(num_tokens * config_.num_experts_per_tok);
  times_.split = micro_batch_policy_.Split(num_tokens);
  SplitInto(times_.split ? 2 : 1, batch);
  const absl::Status run = RunLayers(batch);
  if (!run.ok() && overlapping_ != nullptr) overlapping_->GiveUp();
  RETURN_IF_ERROR(run);
  micro_batch_policy_.OnStep(num_tokens, times_);
  const auto num_logit_rows = static_cast<int64_t>(batch.logit_rows.size());
  last_residual_.resize(num_logit_rows * hidden);
  for (int64_t i = 0; i < num_logit_rows; ++i) {
    std::memcpy(last_residual_.data() + i * hidden, residual_.data() + batch.logit_rows[i] * hidden,
                hidden * sizeof(float));
  }
  last_hidden_.resize(num_logit_rows * hidden);
  return NormInto(last_residual_.data(), num_logit_rows, weights_.norm, last_hidden_.data());
}

void Decoder::SplitInto(int count, const StepBatch& batch) {
  const auto num_tokens = static_cast<int64_t>(batch.ids.size());
  micro_batches_.resize(count);
  for (int part = 0; part < count; ++part) {
    MicroBatch& micro = micro_batches_[part];
    micro.first_row = num_tokens * part / count;
    micro.num_rows = num_tokens * (part + 1) / count - micro.first_row;
    micro.started = false;
    micro.sequences.clear();
    for (const AttentionSequence& sequence : batch.sequences) {
      const int64_t begin = std::max(sequence.first_row, micro.first_row);
      const int64_t end =
          std::min(sequence.first_row + sequence.num_tokens, micro.first_row + micro.num_rows);
      if (begin >= end) continue;
      AttentionSequence cut = sequence;
      cut.first_row = begin - micro.first_row;
      cut.num_tokens = end - begin;
      cut.first_position += begin - sequence.first_row;
      micro.sequences.push_back(cut);
    }
  }
}

absl::Status Decoder::RunLayers(const StepBatch& batch) {
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
    for (MicroBatch& micro : micro_batches_) {
      if (micro.started) RETURN_IF_ERROR(FinishExperts(micro));
      const absl::Time start = absl::Now();
      RETURN_IF_ERROR(AttentionLayer(batch, micro, layer));
      const absl::Time attended = absl::Now();
      times_.attention += attended - start;
      const bool sparse = config_.IsSparseLayer(layer);
      RETURN_IF_ERROR(sparse ? Gate(micro, layer) : DenseMlp(micro, layer));
      times_.mlp += absl::Now() - attended;
      if (sparse) RETURN_IF_ERROR(StartExperts(micro, layer));
    }
  }
  for (MicroBatch& micro : micro_batches_) {
    if (micro.started) RETURN_IF_ERROR(FinishExperts(micro));
  }
  return absl::OkStatus();
}

absl::Status Decoder::NormInto(const float* input, int64_t num_rows,
                               const std::vector<float>& weight, BFloat16* output) {
  return RmsNorm({.input = input,
                  .weight = weight.data(),
                  .output = output,
                  .num_rows = num_rows,
                  .hidden_size = config_.hidden_size,
                  .rms_norm_eps = static_cast<float>(config_.rms_norm_eps)},
                 device_);
}

absl::Status Decoder::AttentionLayer(const StepBatch& batch, const MicroBatch& micro, int layer) {
  const LayerWeights& weights = weights_.layers[layer];
  const int64_t num_rows = micro.num_rows;
  const int64_t q_width = int64_t{config_.num_attention_heads} * config_.head_dim;
  RETURN_IF_ERROR(NormInto(ResidualOf(micro), num_rows, weights.input_layernorm, HiddenOf(micro)));
  qkv_.resize(num_rows * weights.qkv_proj.out_features());
  RETURN_IF_ERROR(Linear({.input = HiddenOf(micro),
                          .weight = &weights.qkv_proj,
                          .output = qkv_.data(),
                          .num_rows = num_rows},
                         device_));
  q_.resize(num_rows * q_width);
  RETURN_IF_ERROR(NormRope({.qkv = qkv_.data(),
                            .q_norm = weights.q_norm.data(),
                            .k_norm = weights.k_norm.data(),
                            .rope = &rope_,
                            .positions = batch.positions.data() + micro.first_row,
                            .slot_mapping = batch.slot_mapping.data() + micro.first_row,
                            .q = q_.data(),
                            .kv_cache = kv_cache_.Layer(layer),
                            .num_tokens = num_rows,
                            .num_attention_heads = config_.num_attention_heads,
                            .rms_norm_eps = static_cast<float>(config_.rms_norm_eps)},
                           device_));
  attention_.resize(num_rows * q_width);
  RETURN_IF_ERROR(Attention({.q = q_.data(),
                             .kv_cache = kv_cache_.Layer(layer),
                             .sequences = micro.sequences,
                             .output = attention_.data(),
                             .num_attention_heads = config_.num_attention_heads,
                             .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim))},
                            device_));
  RETURN_IF_ERROR(Linear({.input = attention_.data(),
                          .weight = &weights.o_proj,
                          .output = ResidualOf(micro),
                          .num_rows = num_rows,
                          .accumulate = true},
                         device_));
  return NormInto(ResidualOf(micro), num_rows, weights.post_attention_layernorm, HiddenOf(micro));
}

absl::Status Decoder::DenseMlp(const MicroBatch& micro, int layer) {
  const LayerWeights& weights = weights_.layers[layer];
  intermediate_.resize(micro.num_rows * config_.intermediate_size);
  RETURN_IF_ERROR(LinearSwiGlu({.input = HiddenOf(micro),
                                .gate_up_proj = &weights.gate_up_proj,
                                .output = intermediate_.data(),
                                .num_rows = micro.num_rows},
                               device_));
  return Linear({.input = intermediate_.data(),
                 .weight = &weights.down_proj,
                 .output = ResidualOf(micro),
                 .num_rows = micro.num_rows,
                 .accumulate = true},
                device_);
}

absl::Status Decoder::Gate(const MicroBatch& micro, int layer) {
  const int top_k = config_.num_experts_per_tok;
  gate_logits_.resize(micro.num_rows * config_.num_experts);
  RETURN_IF_ERROR(Linear({.input = HiddenOf(micro),
                          .weight = &weights_.layers[layer].gate,
                          .output = gate_logits_.data(),
                          .num_rows = micro.num_rows},
                         device_));
  return MoeGate({.gate_logits = gate_logits_.data(),
                  .topk_ids = topk_ids_.data() + micro.first_row * top_k,
                  .topk_weights = topk_weights_.data() + micro.first_row * top_k,
                  .num_tokens = micro.num_rows,
                  .num_experts = config_.num_experts,
                  .num_experts_per_tok = top_k,
                  .norm_topk_prob = config_.norm_topk_prob},
                 device_);
}

absl::Status Decoder::StartExperts(MicroBatch& micro, int layer) {
  const int top_k = config_.num_experts_per_tok;
  const ExpertBatch experts = {.layer = layer,
                               .hidden_states = HiddenOf(micro),
                               .topk_ids = topk_ids_.data() + micro.first_row * top_k,
                               .num_rows = micro.num_rows};
  const absl::Time start = absl::Now();
  micro.started = true;
  if (micro_batches_.size() == 1) {
    micro.expert_rows.resize(micro.num_rows * top_k);
    RETURN_IF_ERROR(experts_->Run(experts, micro.expert_rows));
  } else {
    const auto part = static_cast<int>(&micro - micro_batches_.data());
    RETURN_IF_ERROR(overlapping_->Start(part, experts, micro.expert_rows));
  }
  times_.experts += absl::Now() - start;
  return absl::OkStatus();
}

absl::Status Decoder::FinishExperts(MicroBatch& micro) {
  const absl::Time start = absl::Now();
  if (micro_batches_.size() > 1) {
    RETURN_IF_ERROR(overlapping_->Finish(static_cast<int>(&micro - micro_batches_.data())));
  }
  const absl::Time combined = absl::Now();
  RETURN_IF_ERROR(MoeCombine(
      {.expert_rows = micro.expert_rows.data(),
       .topk_weights = topk_weights_.data() + micro.first_row * config_.num_experts_per_tok,
       .residual = ResidualOf(micro),
       .num_tokens = micro.num_rows,
       .num_experts_per_tok = config_.num_experts_per_tok,
       .hidden_size = config_.hidden_size},
      device_));
  micro.started = false;
  times_.experts += combined - start;
  times_.mlp += absl::Now() - combined;
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
