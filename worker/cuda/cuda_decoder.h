#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/library_gemm.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/norm_rope.h"
#include "kernels/cuda/runtime.h"
#include "kernels/sampling.h"
#include "model/qwen3_config.h"
#include "worker/cuda/cuda_weights.h"
#include "worker/decoder.h"
#include "worker/expert_exchange.h"

namespace conclave {

struct CudaDecoderOptions {
  int device = 0;
  int64_t num_kv_blocks = 0;
  int64_t max_context = 0;  // of one sequence
  int max_running = 0;      // sequences of a step
  int max_step_tokens = 0;
  // For CudaWorkspaceBytes; Create sets them to what it is given.
  bool experts_here = true;        // on the device
  bool experts_elsewhere = false;  // some, or all
  // Decode steps are recorded as a CUDA graph for each bucket of batch sizes and contexts.
  bool graphs = true;
  bool programmatic_launch = false;  // see cuda::Stream
  // False: large products by cuda::LibraryGemm, experts of many rows by wgmma, as far as a device
  // of this compute capability has them.
  bool deterministic = true;
  int compute_major = 0;
};

// Bytes of a CudaDecoder beside weights and KV blocks: activations of a step, attention's
// workspace, logits of a slice, what is copied to the device each step, and LibraryGemm's.
int64_t CudaWorkspaceBytes(const Qwen3Config& config, const CudaDecoderOptions& options);

// What its products ask of LibraryGemm.
cuda::LibraryGemmOptions CudaLibraryGemmOptions(const Qwen3Config& config,
                                                const CudaDecoderOptions& options);

// The forward pass on a GPU. Rounds in the same places as the CPU's, in other orders of summing. A
// row's result does not depend on the batch, the chunk or the graph it ran in: every op it uses
// holds to that (kernels/cuda), but for what deterministic=false lets in.
class CudaDecoder final : public StepDecoder {
 public:
  // `config` and `experts` are borrowed. `experts` runs those that `weights` has not, on the host
  // or on shards, through pinned memory; null: all are in `weights`, or the model is dense. Errors:
  // InvalidArgument (a shape that the kernels do not take), ResourceExhausted, Internal.
  // FailedPrecondition: no cuBLASLt for deterministic=false.
  static absl::StatusOr<std::unique_ptr<CudaDecoder>> Create(const Qwen3Config& config,
                                                             CudaWeights weights,
                                                             const CudaDecoderOptions& options,
                                                             ExpertExchange* experts);
  ~CudaDecoder() override;

  // Enqueues the step; waits only for what ExpertExchange needs.
  absl::Status Forward(const StepBatch& batch) override;
  // Waits for the step. Internal also if a gate's logit of it was not finite.
  absl::Status Logits(int64_t first, int64_t count, float* logits) override;
  // All but log probabilities and a top_k above 1,024.
  absl::StatusOr<bool> Draw(int64_t first, absl::Span<const SampleArgs> args,
                            absl::Span<SampleResult> results) override;
  // Kernels are not timed one by one: the whole step counts as attention.
  const StepTimes& times() const override { return times_; }

  // Graphs recorded so far.
  size_t num_graphs() const;

 private:
  struct Buffers;

  // What sizes a step's launches; a graph is recorded for one.
  struct StepShape {
    int64_t num_rows = 0;
    int64_t num_logit_rows = 0;
    // Decodes lie before prefills in the sequences. See kDecodeRows for which is which.
    int num_decodes = 0, max_decode_tokens = 0, max_decode_context = 0;
    int num_prefills = 0, max_prefill_tokens = 0, max_prefill_context = 0;
    bool padded = false;  // rows past *num_valid are padding
  };

  CudaDecoder(const Qwen3Config& config, CudaWeights weights, const CudaDecoderOptions& options,
              ExpertExchange* experts);
  absl::Status Allocate();
  bool IsGraphStep(const StepBatch& batch) const;
  // Packs the batch into pinned memory and enqueues its copy.
  StepShape Pack(const StepBatch& batch, bool padded);
  absl::Status Upload();
  absl::Status LaunchGraph(const StepShape& shape);
  absl::Status Enqueue(const StepShape& shape);
  absl::Status AttentionLayer(const StepShape& shape, int layer);
  absl::Status DenseMlp(const StepShape& shape, const CudaLayerWeights& weights);
  absl::Status SparseMlp(const StepShape& shape, int layer);
  absl::Status ExpertsHere(const StepShape& shape, int layer);
  absl::Status SendElsewhere(const StepShape& shape);
  absl::Status ExpertsElsewhere(const StepShape& shape, int layer);
  // Rows of logits on the device, in the buffer; at most its size.
  absl::Status ComputeLogits(int64_t first, int64_t count);
  absl::Status Norm(const float* input, int64_t num_rows, const int64_t* row_ids,
                    const float* weight, BFloat16* output);
  // With deterministic=false by the library, where that suits.
  absl::Status Multiply(const BFloat16* input, const cuda::DeviceMatrix& weight, float* output,
                        int64_t num_rows, bool accumulate = false);
  cuda::DeviceKvCacheLayer KvLayer(int layer) const;

  const Qwen3Config& config_;
  const CudaWeights weights_;
  const CudaDecoderOptions options_;
  ExpertExchange* const experts_;
  std::unique_ptr<Buffers> buffers_;
  std::unique_ptr<cuda::LibraryGemm> library_;             // null: deterministic
  std::map<std::pair<int64_t, int>, cuda::Graph> graphs_;  // by rows and context
  std::vector<const BFloat16*> expert_rows_;
  StepTimes times_;
};

}  // namespace conclave
