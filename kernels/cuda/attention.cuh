#pragma once

#include <cmath>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/platform.cuh"

// The arithmetic that decode and prefill share. A warp's 16 query rows are operand A of an mma, 8
// positions (scores) or 8 dimensions (the mix of values) operand B. Lane 4 g + t holds, of each
// result, rows g and g + 8. Scores are kept in units of log2 e, so that weights are powers of 2.
//
// Rounding steps are written out (__fmul_rn, __fmaf_rn): fused in one kernel and not in the other,
// they would give different bits.
namespace conclave::cuda {

inline constexpr int kKvBlock = 16;    // positions of a KV block
inline constexpr int kKeyTile = 64;    // positions between two looks at the maximum
inline constexpr int kQueryRows = 16;  // of a warp
inline constexpr int kPad = 8;         // values after each row: rows 16 bytes apart mod 128
inline constexpr uint32_t kOnes = 0x3f803f80u;  // two BF16
static_assert(kAttentionSegment % kKeyTile == 0);

struct AttentionKernelArgs {
  const BFloat16* q;
  const BFloat16* k;
  const BFloat16* v;
  const DeviceAttentionSequence* sequences;
  const int32_t* block_tables;
  BFloat16* output;
  float* workspace;
  int num_heads;
  int num_kv_heads;
  int group;  // query heads a KV head
  int num_segments;
  float scale_log2;  // scale * log2 e
};

// Grids of all segments or row tiles; head_dim 32, 64 and 128.
template <int kHeadDim>
absl::Status LaunchDecode(const AttentionKernelArgs& args, int num_sequences, int max_rows,
                          const Stream& stream);
template <int kHeadDim>
absl::Status LaunchPrefill(const AttentionKernelArgs& args, int num_sequences, int max_rows,
                           const Stream& stream);

// Starts the copy of rows of `kHeadDim` values each, 16 bytes a step: row(i) is where row i lies,
// or null for zeros.
template <int kHeadDim, int kThreads, typename RowAt>
CONCLAVE_DEVICE void LoadRows(BFloat16* shared, int num_rows, const BFloat16* anywhere,
                              const RowAt& row_at) {
  constexpr int kPieces = kHeadDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < num_rows * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const BFloat16* const from = row_at(row);
    CopyAsync16(shared + row * (kHeadDim + kPad) + piece * 8,
                from == nullptr ? anywhere : from + piece * 8, from != nullptr);
  }
}

// Keys and values of positions first .. first + 63, zeros from `end` on.
template <int kHeadDim, int kThreads>
CONCLAVE_DEVICE void LoadKeyTile(const AttentionKernelArgs& args, const int32_t* table, int kv_head,
                                 int first, int end, BFloat16* keys, BFloat16* values) {
  const auto offset = [&](int row) {
    const int position = first + row;
    return ((int64_t{table[position / kKvBlock]} * args.num_kv_heads + kv_head) * kKvBlock +
            position % kKvBlock) *
           kHeadDim;
  };
  LoadRows<kHeadDim, kThreads>(keys, kKeyTile, args.k, [&](int row) -> const BFloat16* {
    return first + row < end ? args.k + offset(row) : nullptr;
  });
  LoadRows<kHeadDim, kThreads>(values, kKeyTile, args.v, [&](int row) -> const BFloat16* {
    return first + row < end ? args.v + offset(row) : nullptr;
  });
}

// Operand A: rows 0 .. 15, columns column .. column + 15 of a row-major array.
CONCLAVE_DEVICE void LoadOperandA(uint32_t (&a)[4], const BFloat16* array, int stride, int column) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  LoadMatrices<false>(a, array + lane % 16 * stride + column + lane / 16 * 8);
}

// Adds q k^T of 16 positions (two results of 8) over all dimensions, in rising order.
template <int kHeadDim>
CONCLAVE_DEVICE void AddScores(float (&scores)[2][4], const uint32_t (&q)[kHeadDim / 16][4],
                               const BFloat16* keys) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const BFloat16* const row =
      keys + (lane / 16 * 8 + lane % 8) * (kHeadDim + kPad) + lane / 8 % 2 * 8;
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
    uint32_t k[4];
    LoadMatrices<false>(k, row + step * 16);
    Mma(scores[0], q[step], k[0], k[1]);
    Mma(scores[1], q[step], k[2], k[3]);
  }
}

// Adds weights times values of 16 positions, for 16 dimensions (two results of 8).
template <int kHeadDim>
CONCLAVE_DEVICE void AddValues(float (&mix0)[4], float (&mix1)[4], const uint32_t (&weights)[4],
                               const BFloat16* values, int dimension) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  uint32_t v[4];
  LoadMatrices<true>(
      v, values + (lane / 8 % 2 * 8 + lane % 8) * (kHeadDim + kPad) + dimension + lane / 16 * 8);
  Mma(mix0, weights, v[0], v[1]);
  Mma(mix1, weights, v[2], v[3]);
}

// A score in units of log2 e, or -infinity for a position the row does not see.
CONCLAVE_DEVICE float Masked(float score, float scale_log2, int position, int last_visible) {
  return position <= last_visible ? __fmul_rn(score, scale_log2) : -INFINITY;
}

// Over the four lanes that hold a row.
CONCLAVE_DEVICE float RowMax(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}

// What earlier sums are multiplied by when the maximum rises from `before` to `now`. 1, and not a
// NaN, while nothing was seen.
CONCLAVE_DEVICE float Decay(float before, float now) {
  return now == -INFINITY ? 1.0f : Exp2(__fsub_rn(before, now));
}
// The weight of a score; 0 if hidden, also while the maximum is -infinity.
CONCLAVE_DEVICE float Weight(float score, float max) {
  return score == -INFINITY ? 0.0f : Exp2(__fsub_rn(score, max));
}

// Merges a segment's part of a softmax, `value` being its sum of weights or a dimension of its mix.
CONCLAVE_DEVICE float MergeValue(float total, float decay, float value, float value_decay) {
  return __fmaf_rn(value, value_decay, __fmul_rn(total, decay));
}

}  // namespace conclave::cuda
