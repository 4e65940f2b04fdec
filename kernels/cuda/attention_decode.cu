#include "kernels/cuda/attention.cuh"

namespace conclave::cuda {
namespace {

constexpr int kWarps = kKeyTile / 16;  // each scores 16 of a tile's positions
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kStages = 2;
constexpr int kWeightStride = kKeyTile + kPad;

template <int kHeadDim>
struct DecodeShared {
  BFloat16 q[kQueryRows][kHeadDim + kPad];
  BFloat16 keys[kStages][kKeyTile][kHeadDim + kPad];
  BFloat16 values[kStages][kKeyTile][kHeadDim + kPad];
  BFloat16 weights[kQueryRows][kWeightStride];
  float max[kWarps][kQueryRows];
};
static_assert(2 * sizeof(DecodeShared<128>) <= kMaxSharedBytes);

// Of a row in one segment, in the workspace: its mix, then its maximum and its sum of weights.
template <int kHeadDim>
inline constexpr int kStateFloats = kHeadDim + 2;

CONCLAVE_DEVICE int64_t StateIndex(const AttentionKernelArgs& args,
                                   const DeviceAttentionSequence& sequence, int kv_head,
                                   int segment) {
  return (int64_t{sequence.segment_begin + segment} * args.num_kv_heads + kv_head) * kQueryRows;
}

// One segment (blockIdx.x) of one KV head (y) of one sequence (z). The warps share out a tile's
// positions while they score and the dimensions while they mix values: neither sums across warps.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads) DecodeKernel(const AttentionKernelArgs args) {
  AwaitPrevious();
  // Of head_dim 32, two of the warps mix nothing.
  constexpr int kWarpDims = kHeadDim / kWarps < 16 ? 16 : kHeadDim / kWarps;
  static_assert(kWarpDims % 16 == 0);
  const DeviceAttentionSequence sequence = args.sequences[blockIdx.z];
  const int segment = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int context = sequence.first_position + sequence.num_tokens;
  const int begin = segment * kAttentionSegment;
  if (sequence.num_tokens == 0 || begin >= context) return;
  const int end = begin + kAttentionSegment < context ? begin + kAttentionSegment : context;
  const int num_rows = sequence.num_tokens * args.group;
  const int32_t* const table = args.block_tables + sequence.table_begin;
  auto& shared = *reinterpret_cast<DecodeShared<kHeadDim>*>(DynamicShared());
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int g = lane / 4, t = lane % 4;

  LoadRows<kHeadDim, kThreads>(&shared.q[0][0], kQueryRows, args.q, [&](int row) {
    const int64_t token = sequence.first_row + row / args.group;
    const int64_t head = token * args.num_heads + kv_head * args.group + row % args.group;
    return row < num_rows ? args.q + head * kHeadDim : nullptr;
  });
  LoadKeyTile<kHeadDim, kThreads>(args, table, kv_head, begin, end, &shared.keys[0][0][0],
                                  &shared.values[0][0][0]);
  CommitCopies();

  // Of rows g and g + 8: the last position seen, -1 for a row that is not there.
  int last_visible[2];
  for (int half = 0; half < 2; ++half) {
    const int row = g + half * 8;
    last_visible[half] = row < num_rows ? sequence.first_position + row / args.group : -1;
  }
  const bool mixes = warp * kWarpDims < kHeadDim;
  float max[2] = {-INFINITY, -INFINITY};
  float mix[kWarpDims / 8][4] = {};
  float sum[4] = {};  // every column the sum of weights
  uint32_t q[kHeadDim / 16][4];
  const int num_tiles = (end - begin + kKeyTile - 1) / kKeyTile;
  for (int tile = 0; tile < num_tiles; ++tile) {
    const int first = begin + tile * kKeyTile;
    if (tile + 1 < num_tiles) {
      LoadKeyTile<kHeadDim, kThreads>(args, table, kv_head, first + kKeyTile, end,
                                      &shared.keys[(tile + 1) % kStages][0][0],
                                      &shared.values[(tile + 1) % kStages][0][0]);
    }
    CommitCopies();
    WaitForCopies<1>();
    __syncthreads();
    if (tile == 0) {
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) {
        LoadOperandA(q[step], &shared.q[0][0], kHeadDim + kPad, step * 16);
      }
    }
    float scores[2][4] = {};
    AddScores<kHeadDim>(scores, q, &shared.keys[tile % kStages][warp * 16][0]);
    float tile_max[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int position = first + warp * 16 + n * 8 + 2 * t + i % 2;
        scores[n][i] = Masked(scores[n][i], args.scale_log2, position, last_visible[i / 2]);
        tile_max[i / 2] = fmaxf(tile_max[i / 2], scores[n][i]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      tile_max[half] = RowMax(tile_max[half]);
      if (t == 0) shared.max[warp][g + half * 8] = tile_max[half];
    }
    __syncthreads();
    float decay[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float now = max[half];
      for (int w = 0; w < kWarps; ++w) now = fmaxf(now, shared.max[w][g + half * 8]);
      decay[half] = Decay(max[half], now);
      max[half] = now;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        BFloat16* const pair = &shared.weights[g + half * 8][warp * 16 + n * 8 + 2 * t];
        StorePair(pair, RoundPair(Weight(scores[n][2 * half], now),
                                  Weight(scores[n][2 * half + 1], now)));
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] = __fmul_rn(sum[i], decay[i / 2]);
#pragma unroll
      for (int d = 0; d < kWarpDims / 8; ++d) mix[d][i] = __fmul_rn(mix[d][i], decay[i / 2]);
    }
    if (mixes) {
#pragma unroll
      for (int step = 0; step < kKeyTile / 16; ++step) {
        uint32_t weights[4];
        LoadOperandA(weights, &shared.weights[0][0], kWeightStride, step * 16);
        Mma(sum, weights, kOnes, kOnes);
#pragma unroll
        for (int d = 0; d < kWarpDims / 8; d += 2) {
          AddValues<kHeadDim>(mix[d], mix[d + 1], weights,
                              &shared.values[tile % kStages][step * 16][0],
                              warp * kWarpDims + d * 8);
        }
      }
    }
    // Nobody overwrites keys, values, weights or maxima before all have read them.
    __syncthreads();
  }
  WaitForCopies<0>();

  float* const states =
      args.workspace + StateIndex(args, sequence, kv_head, segment) * kStateFloats<kHeadDim>;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = g + half * 8;
    if (row >= num_rows || !mixes) continue;
    float* const state = states + row * kStateFloats<kHeadDim>;
#pragma unroll
    for (int d = 0; d < kWarpDims / 8; ++d) {
      state[warp * kWarpDims + d * 8 + 2 * t] = mix[d][2 * half];
      state[warp * kWarpDims + d * 8 + 2 * t + 1] = mix[d][2 * half + 1];
    }
    if (warp == 0 && t == 0) {
      state[kHeadDim] = max[half];
      state[kHeadDim + 1] = sum[2 * half];
    }
  }
}

// Row blockIdx.x of KV head y of sequence z; a thread a dimension. Merges the segments in order.
template <int kHeadDim>
__global__ void __launch_bounds__(kHeadDim) MergeKernel(const AttentionKernelArgs args) {
  AwaitPrevious();
  const DeviceAttentionSequence sequence = args.sequences[blockIdx.z];
  const int row = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  if (row >= sequence.num_tokens * args.group) return;
  const int position = sequence.first_position + row / args.group;
  const int d = static_cast<int>(threadIdx.x);
  float max = 0, sum = 0, mix = 0;
  for (int segment = 0; segment <= position / kAttentionSegment; ++segment) {
    const float* const state =
        args.workspace +
        (StateIndex(args, sequence, kv_head, segment) + row) * kStateFloats<kHeadDim>;
    if (segment == 0) {
      max = state[kHeadDim];
      sum = state[kHeadDim + 1];
      mix = state[d];
      continue;
    }
    const float now = fmaxf(max, state[kHeadDim]);
    const float decay = Decay(max, now), state_decay = Decay(state[kHeadDim], now);
    sum = MergeValue(sum, decay, state[kHeadDim + 1], state_decay);
    mix = MergeValue(mix, decay, state[d], state_decay);
    max = now;
  }
  const int64_t token = sequence.first_row + row / args.group;
  const int64_t head = token * args.num_heads + kv_head * args.group + row % args.group;
  args.output[head * kHeadDim + d] = Round(__fdiv_rn(mix, sum));
}

}  // namespace

template <int kHeadDim>
absl::Status LaunchDecode(const AttentionKernelArgs& args, int num_sequences, int max_rows,
                          const Stream& stream) {
  const dim3 grid(static_cast<unsigned>(args.num_segments),
                  static_cast<unsigned>(args.num_kv_heads), static_cast<unsigned>(num_sequences));
  const absl::Status status = Launch("AttentionDecode", DecodeKernel<kHeadDim>, grid, kThreads,
                                     sizeof(DecodeShared<kHeadDim>), stream, args);
  if (!status.ok()) return status;
  const dim3 merge_grid(static_cast<unsigned>(max_rows), static_cast<unsigned>(args.num_kv_heads),
                        static_cast<unsigned>(num_sequences));
  return Launch("AttentionMerge", MergeKernel<kHeadDim>, merge_grid, kHeadDim, 0, stream, args);
}
template absl::Status LaunchDecode<32>(const AttentionKernelArgs&, int, int, const Stream&);
template absl::Status LaunchDecode<64>(const AttentionKernelArgs&, int, int, const Stream&);
template absl::Status LaunchDecode<128>(const AttentionKernelArgs&, int, int, const Stream&);

}  // namespace conclave::cuda
