#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/aligned_vector.h"
#include "common/bfloat16.h"
#include "kernels/attention.h"
#include "kernels/device.h"
#include "kernels/rope_table.h"
#include "kernels/sampling.h"
#include "model/qwen3_config.h"
#include "worker/expert_exchange.h"
#include "worker/kv_cache.h"
#include "worker/micro_batch_policy.h"
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
          const Device& device, ExpertExchange* experts,
          MicroBatchMode micro_batch = MicroBatchMode::kAuto);

  absl::Status Forward(const StepBatch& batch) override;
  absl::Status Logits(int64_t first, int64_t count, float* logits) override;
  const StepTimes& times() const override { return times_; }

 private:
  // Consecutive rows of a step that go through the layers together.
  struct MicroBatch {
    int64_t first_row = 0;
    int64_t num_rows = 0;
    std::vector<AttentionSequence> sequences;  // rows counted from first_row
    std::vector<const BFloat16*> expert_rows;  // [num_rows * num_experts_per_tok]
    bool started = false;                      // its experts are at work
  };

  // One micro-batch of all rows, or two of half of them each; a sequence may be cut in two, for
  // attention gives the same bits for a prompt in chunks.
  void SplitInto(int count, const StepBatch& batch);
  // Each micro-batch through all layers in turn: while the experts of one are away, the other's
  // attention is computed.
  absl::Status RunLayers(const StepBatch& batch);
  absl::Status AttentionLayer(const StepBatch& batch, const MicroBatch& micro, int layer);
  absl::Status DenseMlp(const MicroBatch& micro, int layer);
  absl::Status Gate(const MicroBatch& micro, int layer);
  absl::Status StartExperts(MicroBatch& micro, int layer);
  absl::Status FinishExperts(MicroBatch& micro);
  absl::Status NormInto(const float* input, int64_t num_rows, const std::vector<float>& weight,
                        BFloat16* output);
  float* ResidualOf(const MicroBatch& micro) {
    return residual_.data() + micro.first_row * config_.hidden_size;
  }
  BFloat16* HiddenOf(const MicroBatch& micro) {
    return hidden_states_.data() + micro.first_row * config_.hidden_size;
  }

  const Qwen3Config& config_;
  const WorkerWeights& weights_;
  KvCache& kv_cache_;
  const Device device_;
  ExpertExchange* const experts_;
  OverlappingExchange* const overlapping_;  // experts_, or null if it computes where we do
  MicroBatchPolicy micro_batch_policy_;
  const RopeTable rope_;
  StepTimes times_;
  std::vector<MicroBatch> micro_batches_;

  // Activations of the current step, kept so that a step allocates only while it grows. Those of
  // num_tokens are there for all micro-batches at a time, those of num_rows serve one after the
  // other.
  std::vector<float> residual_;          // [num_tokens, hidden_size]
  std::vector<BFloat16> hidden_states_;  // [num_tokens, hidden_size], normed
  std::vector<int32_t> topk_ids_;        // [num_tokens, num_experts_per_tok]
  std::vector<float> topk_weights_;      // [num_tokens, num_experts_per_tok]
  AlignedVector<float> qkv_;             // [num_rows, (heads + 2 * kv_heads) * head_dim]
  std::vector<BFloat16> q_;              // [num_rows, heads * head_dim]
  std::vector<BFloat16> attention_;      // [num_rows, heads * head_dim]
  std::vector<BFloat16> intermediate_;   // [num_rows, intermediate_size]
  std::vector<float> gate_logits_;       // [num_rows, num_experts]
  std::vector<float> last_residual_;     // [num_logit_rows, hidden_size]
  std::vector<BFloat16> last_hidden_;    // [num_logit_rows, hidden_size], after the final norm
};

}  // namespace conclave
