#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cuda/check_args.h"
#include "kernels/cuda/norm_rope.h"
#include "kernels/cuda/platform.cuh"

namespace conclave::cuda {
namespace {

constexpr int kWarps = 4;  // heads a thread block
constexpr int kHalvesPerLane = kMaxHeadDim / 2 / kWarpSize;

struct KernelArgs {
  const float* qkv;
  const float* q_norm;
  const float* k_norm;
  const float* cos;
  const float* sin;
  const int32_t* positions;
  const int64_t* slot_mapping;
  BFloat16* q;
  BFloat16* k_cache;
  BFloat16* v_cache;
  int num_heads;  // of queries
  int num_kv_heads;
  int head_dim;
  int block_tokens;
  float eps;
};

// Head blockIdx.x * kWarps + warp of token blockIdx.y: queries, then keys, then values. Lane l
// holds the pairs (i, i + head_dim / 2) of i = l, l + 32, ...
__global__ void NormRopeKernel(KernelArgs args) {
  AwaitPrevious();
  const int head =
      static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int all_heads = args.num_heads + 2 * args.num_kv_heads;
  if (head >= all_heads) return;
  const int64_t token = blockIdx.y;
  const int64_t slot = args.slot_mapping[token];
  const bool is_query = head < args.num_heads;
  if (slot < 0 && !is_query) return;
  const int half = args.head_dim / 2;
  const float* const in = args.qkv + (token * all_heads + head) * args.head_dim;
  float low[kHalvesPerLane], high[kHalvesPerLane];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kHalvesPerLane; ++j) {
    const int i = lane + j * kWarpSize;
    low[j] = i < half ? in[i] : 0;
    high[j] = i < half ? in[i + half] : 0;
    squares = __fmaf_rn(low[j], low[j], squares);
    squares = __fmaf_rn(high[j], high[j], squares);
  }
  const int kv_head = (head - args.num_heads) % args.num_kv_heads;
  BFloat16* out = args.q + (token * args.num_heads + head) * args.head_dim;
  if (!is_query) {
    const bool is_value = head >= args.num_heads + args.num_kv_heads;
    out = (is_value ? args.v_cache : args.k_cache) +
          ((slot / args.block_tokens * args.num_kv_heads + kv_head) * args.block_tokens +
           slot % args.block_tokens) *
              args.head_dim;
    if (is_value) {
#pragma unroll
      for (int j = 0; j < kHalvesPerLane; ++j) {
        const int i = lane + j * kWarpSize;
        if (i >= half) continue;
        out[i] = Round(low[j]);
        out[i + half] = Round(high[j]);
      }
      return;
    }
  }
  const float* const weight = is_query ? args.q_norm : args.k_norm;
  const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(args.head_dim) + args.eps);
  const int64_t angles = int64_t{args.positions[token]} * half;
#pragma unroll
  for (int j = 0; j < kHalvesPerLane; ++j) {
    const int i = lane + j * kWarpSize;
    if (i >= half) continue;
    const float a = low[j] * scale * weight[i];
    const float b = high[j] * scale * weight[i + half];
    const float cos = args.cos[angles + i], sin = args.sin[angles + i];
    out[i] = Round(a * cos - b * sin);
    out[i + half] = Round(b * cos + a * sin);
  }
}

}  // namespace

absl::Status NormRope(const DeviceNormRopeArgs& args, const Stream& stream) {
  const DeviceKvCacheLayer& cache = args.kv_cache;
  RETURN_IF_ERROR(CheckRange("num_tokens", args.num_tokens, 0, 65535));
  RETURN_IF_ERROR(
      CheckRange("num_attention_heads", args.num_attention_heads, 1, limits::kMaxAttentionHeads));
  RETURN_IF_ERROR(
      CheckRange("num_key_value_heads", cache.num_key_value_heads, 1, args.num_attention_heads));
  RETURN_IF_ERROR(CheckRange("head_dim", cache.head_dim, 2, kMaxHeadDim));
  RETURN_IF_ERROR(CheckMultiple("head_dim", cache.head_dim, 2));
  RETURN_IF_ERROR(CheckRange("block_tokens", cache.block_tokens, 1, 1024));
  if (args.num_tokens == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull({{"qkv", args.qkv},
                                {"q_norm", args.q_norm},
                                {"k_norm", args.k_norm},
                                {"rope_cos", args.rope_cos},
                                {"rope_sin", args.rope_sin},
                                {"positions", args.positions},
                                {"slot_mapping", args.slot_mapping},
                                {"q", args.q},
                                {"kv_cache.k", cache.k},
                                {"kv_cache.v", cache.v}}));
  const int all_heads = args.num_attention_heads + 2 * cache.num_key_value_heads;
  const KernelArgs kernel_args{args.qkv,
                               args.q_norm,
                               args.k_norm,
                               args.rope_cos,
                               args.rope_sin,
                               args.positions,
                               args.slot_mapping,
                               args.q,
                               cache.k,
                               cache.v,
                               args.num_attention_heads,
                               cache.num_key_value_heads,
                               cache.head_dim,
                               cache.block_tokens,
                               args.rms_norm_eps};
  const dim3 grid(static_cast<unsigned>((all_heads + kWarps - 1) / kWarps),
                  static_cast<unsigned>(args.num_tokens));
  return Launch("NormRope", NormRopeKernel, grid, kWarps * kWarpSize, 0, stream, kernel_args);
}

}  // namespace conclave::cuda
