#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cuda/check_args.h"
#include "kernels/cuda/platform.cuh"
#include "kernels/cuda/rows.h"

namespace conclave::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void EmbeddingKernel(const uint32_t* ids, const BFloat16* table, float* residual,
                                int64_t hidden_size) {
  AwaitPrevious();
  const BFloat16* const row = table + int64_t{ids[blockIdx.x]} * hidden_size;
  float* const out = residual + int64_t{blockIdx.x} * hidden_size;
  for (int64_t i = threadIdx.x; i < hidden_size; i += kThreads) out[i] = Widen(row[i]);
}

// One thread block a row. The sum's order: each thread over its own stride, then the lanes, then
// the warps.
__global__ void RmsNormKernel(const float* input, const int64_t* row_ids, const float* weight,
                              BFloat16* output, int64_t hidden_size, float eps) {
  AwaitPrevious();
  __shared__ float warp_sums[kThreads / kWarpSize];
  const int64_t row = row_ids == nullptr ? int64_t{blockIdx.x} : row_ids[blockIdx.x];
  const float* const in = input + row * hidden_size;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < hidden_size; i += kThreads) {
    squares = __fmaf_rn(in[i], in[i], squares);
  }
  squares = WarpSum(squares);
  if (threadIdx.x % kWarpSize == 0) warp_sums[threadIdx.x / kWarpSize] = squares;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < kThreads / kWarpSize; ++warp) sum += warp_sums[warp];
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(hidden_size) + eps);
  BFloat16* const out = output + int64_t{blockIdx.x} * hidden_size;
  for (int64_t i = threadIdx.x; i < hidden_size; i += kThreads) {
    out[i] = Round(in[i] * scale * weight[i]);
  }
}

__global__ void SwiGluKernel(const float* gate_up, BFloat16* output, int64_t intermediate_size) {
  AwaitPrevious();
  const float* const gate = gate_up + int64_t{blockIdx.y} * 2 * intermediate_size;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= intermediate_size) return;
  const float silu = gate[i] / (1.0f + expf(-gate[i]));
  output[int64_t{blockIdx.y} * intermediate_size + i] = Round(silu * gate[intermediate_size + i]);
}

__global__ void CombineKernel(const CombineArgs args) {
  AwaitPrevious();
  const int64_t first_slot = int64_t{blockIdx.y} * args.num_experts_per_tok;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool has_others = args.other_of_slot != nullptr;
  if (i >= args.hidden_size || (!has_others && args.pair_of_slot[first_slot] < 0)) return;
  float sum = 0;
  for (int64_t slot = first_slot; slot < first_slot + args.num_experts_per_tok; ++slot) {
    const int64_t pair = args.pair_of_slot[slot];
    const BFloat16* const row =
        pair >= 0 ? args.expert_rows + pair * args.hidden_size
                  : args.other_rows + int64_t{args.other_of_slot[slot]} * args.hidden_size;
    sum += args.topk_weights[slot] * Widen(row[i]);
  }
  args.residual[int64_t{blockIdx.y} * args.hidden_size + i] += sum;
}

unsigned BlocksFor(int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

// The second dimension of a grid ends at 65,535: a step has at most limits::kMaxStepTokens rows.
absl::Status CheckSizes(int64_t rows, int64_t width) {
  RETURN_IF_ERROR(CheckRange("rows", rows, 0, 65535));
  return CheckRange("row width", width, 1, limits::kMaxHiddenSize);
}

}  // namespace

absl::Status Embedding(const EmbeddingArgs& args, const Stream& stream) {
  RETURN_IF_ERROR(CheckSizes(args.num_tokens, args.hidden_size));
  if (args.num_tokens == 0) return absl::OkStatus();
  RETURN_IF_ERROR(
      CheckNotNull({{"ids", args.ids}, {"table", args.table}, {"residual", args.residual}}));
  return Launch("Embedding", EmbeddingKernel, static_cast<unsigned>(args.num_tokens), kThreads, 0,
                stream, args.ids, args.table, args.residual, args.hidden_size);
}

absl::Status RmsNorm(const RmsNormArgs& args, const int64_t* row_ids, const Stream& stream) {
  RETURN_IF_ERROR(CheckSizes(args.num_rows, args.hidden_size));
  if (args.num_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(
      CheckNotNull({{"input", args.input}, {"weight", args.weight}, {"output", args.output}}));
  return Launch("RmsNorm", RmsNormKernel, static_cast<unsigned>(args.num_rows), kThreads, 0, stream,
                args.input, row_ids, args.weight, args.output, args.hidden_size, args.rms_norm_eps);
}

absl::Status SwiGlu(const SwiGluArgs& args, const Stream& stream) {
  RETURN_IF_ERROR(CheckSizes(args.num_rows, args.intermediate_size));
  if (args.num_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull({{"gate_up", args.gate_up}, {"output", args.output}}));
  const dim3 grid(BlocksFor(args.intermediate_size), static_cast<unsigned>(args.num_rows));
  return Launch("SwiGlu", SwiGluKernel, grid, kThreads, 0, stream, args.gate_up, args.output,
                args.intermediate_size);
}

absl::Status Combine(const CombineArgs& args, const Stream& stream) {
  RETURN_IF_ERROR(CheckSizes(args.num_tokens, args.hidden_size));
  RETURN_IF_ERROR(
      CheckRange("num_experts_per_tok", args.num_experts_per_tok, 1, limits::kMaxExperts));
  if (args.num_tokens == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull({{"expert_rows", args.expert_rows},
                                {"pair_of_slot", args.pair_of_slot},
                                {"topk_weights", args.topk_weights},
                                {"residual", args.residual}}));
  if (args.other_of_slot != nullptr) {
    RETURN_IF_ERROR(CheckNotNull({{"other_rows", args.other_rows}}));
  }
  const dim3 grid(BlocksFor(args.hidden_size), static_cast<unsigned>(args.num_tokens));
  return Launch("Combine", CombineKernel, grid, kThreads, 0, stream, args);
}

}  // namespace conclave::cuda
