#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/bfloat16.h"
#include "kernels/attention.h"
#include "kernels/device.h"
#include "kernels/rope_table.h"
#include "kernels/sampling.h"
#include "model/qwen3_config.h"
#include "worker/expert_exchange.h"
#include "worker/kv_cache.h"
#include "worker/weights.h"

namespace conclave {

// The tokens of one step, of all its sequences one after another.
struct StepBatch {
  std::vector<uint32_t> ids;                 // [num_tokens]
  std::vector<int32_t> positions;            // [num_tokens], absolute
  std::vector<int64_t> slot_mapping;         // [num_tokens]: KV slot each token writes
  std::vector<AttentionSequence> sequences;  // rows of each sequence and its block table
  std::vector<int64_t> logit_rows;           // rows whose logits will be asked for, rising
};

// Where a step's time went, summed over the layers.
struct StepTimes {
  absl::Duration attention;  // embedding, norms, projections, attention
  absl::Duration mlp;        // dense MLP, or gate and combine
  absl::Duration experts;    // dispatch to combine, compute and wire
};

// The forward pass of one step, on whatever device. Called by one thread.
class StepDecoder {
 public:
  virtual ~StepDecoder() = default;

  // Runs all layers over the batch and writes its KV slots. Errors: those of ExpertExchange::Run,
  // Internal (the device failed); the KV slots hold valid or overwritable values after any error,
  // so that the same step can be run again.
  virtual absl::Status Forward(const StepBatch& batch) = 0;

  // Logits of the `count` logit rows from `first` of the last Forward:
  // out FP32 row-major [count, vocab_size], host memory. Blocks.
  virtual absl::Status Logits(int64_t first, int64_t count, float* logits) = 0;

  // Draws from the logit rows from `first` of the last Forward, args[i] from row first + i, its
  // logits left null: results[i] is what conclave::Sample would draw. False, and nothing done, if
  // the device does not draw, or not this: the caller takes Logits and draws itself. Blocks. Errors
  // of conclave::Sample.
  virtual absl::StatusOr<bool> Draw(int64_t /*first*/, absl::Span<const SampleArgs> /*args*/,
                                    absl::Span<SampleResult> /*results*/) {
    return false;
  }

  // Of the last Forward.
  virtual const StepTimes& times() const = 0;
};

// The one on the CPU. Activations are BF16 where the model multiplies, the residual
// stream and all sums are FP32.
class Decoder final : public StepDecoder {
 public:
  // `experts` may be null for a dense model. Everything passed in is borrowed.
  Decoder(const Qwen3Config& config, const WorkerWeights& weights, KvCache& kv_cache,
          const Device& device, ExpertExchange* experts);

  absl::Status Forward(const StepBatch& batch) override;
  absl::Status Logits(int64_t first, int64_t count, float* logits) override;
  const StepTimes& times() const override { return times_; }

 private:
  absl::Status AttentionLayer(const StepBatch& batch, int layer);
  absl::Status DenseMlp(int layer, int64_t num_tokens);
  absl::Status SparseMlp(int layer, int64_t num_tokens);
  absl::Status NormInto(const float* input, int64_t num_rows, const std::vector<float>& weight,
                        std::vector<BFloat16>& output);

  const Qwen3Config& config_;
  const WorkerWeights& weights_;
  KvCache& kv_cache_;
  const Device device_;
  ExpertExchange* const experts_;
  const RopeTable rope_;
  StepTimes times_;

  // Activations of the current step, kept so that a step allocates only while it grows.
  std::vector<float> residual_;               // [num_tokens, hidden_size]
  std::vector<BFloat16> hidden_states_;       // [num_tokens, hidden_size], normed
  std::vector<float> qkv_;                    // [num_tokens, (heads + 2 * kv_heads) * head_dim]
  std::vector<BFloat16> q_;                   // [num_tokens, heads * head_dim]
  std::vector<BFloat16> attention_;           // [num_tokens, heads * head_dim]
  std::vector<float> gate_up_;                // [num_tokens, 2 * intermediate_size]
  std::vector<BFloat16> intermediate_;        // [num_tokens, intermediate_size]
  std::vector<float> gate_logits_;            // [num_tokens, num_experts]
  std::vector<int32_t> topk_ids_;             // [num_tokens, num_experts_per_tok]
  std::vector<float> topk_weights_;           // [num_tokens, num_experts_per_tok]
  std::vector<const BFloat16*> expert_rows_;  // [num_tokens * num_experts_per_tok]
  std::vector<float> last_residual_;          // [num_logit_rows, hidden_size]
  std::vector<BFloat16> last_hidden_;         // [num_logit_rows, hidden_size], after the final norm
};

}  // namespace conclave
