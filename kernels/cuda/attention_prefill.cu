#include "kernels/cuda/attention.cuh"

namespace conclave::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kTileRows = kWarps * kQueryRows;
constexpr int kStages = 2;
constexpr int kSegmentTiles = kAttentionSegment / kKeyTile;

template <int kHeadDim>
struct PrefillShared {
  BFloat16 q[kTileRows][kHeadDim + kPad];
  BFloat16 keys[kStages][kKeyTile][kHeadDim + kPad];
  BFloat16 values[kStages][kKeyTile][kHeadDim + kPad];
  // Merged segments: each thread's own values, one a bank.
  float mix[kHeadDim / 8 * 4][kThreads];
};
static_assert(sizeof(PrefillShared<128>) <= kMaxSharedBytes);

// The softmax of one lane's rows g and g + 8.
struct RowSums {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
};

// Query rows are (token, query head of the group), token by token. A thread block takes 64 of them
// (blockIdx.x, the last first: they see the most) of one KV head (y) of one sequence (z), a
// warp 16.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads) PrefillKernel(const AttentionKernelArgs args) {
  AwaitPrevious();
  constexpr int kDimTiles = kHeadDim / 8;
  const DeviceAttentionSequence sequence = args.sequences[blockIdx.z];
  const int kv_head = static_cast<int>(blockIdx.y);
  const int num_rows = sequence.num_tokens * args.group;
  const int first_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTileRows;
  if (first_row >= num_rows) return;
  const int32_t* const table = args.block_tables + sequence.table_begin;
  auto& shared = *reinterpret_cast<PrefillShared<kHeadDim>*>(DynamicShared());
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int g = lane / 4, t = lane % 4;
  const auto last_seen_by = [&](int row) {
    return sequence.first_position + (row < num_rows ? row : num_rows - 1) / args.group;
  };
  const int end = last_seen_by(first_row + kTileRows - 1) + 1;

  LoadRows<kHeadDim, kThreads>(&shared.q[0][0], kTileRows, args.q, [&](int tile_row) {
    const int row = first_row + tile_row;
    const int64_t token = sequence.first_row + row / args.group;
    const int64_t head = token * args.num_heads + kv_head * args.group + row % args.group;
    return row < num_rows ? args.q + head * kHeadDim : nullptr;
  });
  LoadKeyTile<kHeadDim, kThreads>(args, table, kv_head, 0, end, &shared.keys[0][0][0],
                                  &shared.values[0][0][0]);
  CommitCopies();

  const int warp_row = first_row + warp * kQueryRows;
  const int warp_end = last_seen_by(warp_row + kQueryRows - 1) + 1;
  int last_visible[2];
  for (int half = 0; half < 2; ++half) {
    const int row = warp_row + g + half * 8;
    last_visible[half] = row < num_rows ? last_seen_by(row) : -1;
  }
  RowSums total, segment;
  float mix[kDimTiles][4] = {};
  float sum[4] = {};
  uint32_t q[kHeadDim / 16][4];

  // Merges the segment that ends, as MergeKernel of the decode does.
  const auto end_segment = [&](bool is_first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      segment.sum[half] = sum[2 * half];
      const bool seen = segment.max[half] != -INFINITY;
      const float now = fmaxf(total.max[half], segment.max[half]);
      const float decay = Decay(total.max[half], now),
                  segment_decay = Decay(segment.max[half], now);
#pragma unroll
      for (int d = 0; d < kDimTiles; ++d) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          float& merged = shared.mix[d * 4 + i][thread];
          if (is_first) {
            merged = mix[d][i];
          } else if (seen) {
            merged = MergeValue(merged, decay, mix[d][i], segment_decay);
          }
          mix[d][i] = 0;
        }
      }
      if (is_first) {
        total.sum[half] = segment.sum[half];
        total.max[half] = segment.max[half];
      } else if (seen) {
        total.sum[half] = MergeValue(total.sum[half], decay, segment.sum[half], segment_decay);
        total.max[half] = now;
      }
      segment.max[half] = -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = 0;
  };

  const int num_tiles = (end + kKeyTile - 1) / kKeyTile;
  for (int tile = 0; tile < num_tiles; ++tile) {
    const int first = tile * kKeyTile;
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
        LoadOperandA(q[step], &shared.q[warp * kQueryRows][0], kHeadDim + kPad, step * 16);
      }
    }
    if (first < warp_end) {
      const BFloat16* const keys = &shared.keys[tile % kStages][0][0];
      const BFloat16* const values = &shared.values[tile % kStages][0][0];
      float scores[kKeyTile / 16][2][4] = {};
      float now[2] = {segment.max[0], segment.max[1]};
#pragma unroll
      for (int block = 0; block < kKeyTile / 16; ++block) {
        AddScores<kHeadDim>(scores[block], q, keys + block * 16 * (kHeadDim + kPad));
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int position = first + block * 16 + n * 8 + 2 * t + i % 2;
            float& score = scores[block][n][i];
            score = Masked(score, args.scale_log2, position, last_visible[i / 2]);
            now[i / 2] = fmaxf(now[i / 2], score);
          }
        }
      }
      float decay[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        now[half] = RowMax(now[half]);
        decay[half] = Decay(segment.max[half], now[half]);
        segment.max[half] = now[half];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[i] = __fmul_rn(sum[i], decay[i / 2]);
#pragma unroll
        for (int d = 0; d < kDimTiles; ++d) mix[d][i] = __fmul_rn(mix[d][i], decay[i / 2]);
      }
#pragma unroll
      for (int block = 0; block < kKeyTile / 16; ++block) {
        // A result's layout is that of operand A: the weights need not leave their lanes.
        uint32_t weights[4];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            weights[2 * n + half] = RoundPair(Weight(scores[block][n][2 * half], now[half]),
                                              Weight(scores[block][n][2 * half + 1], now[half]));
          }
        }
        Mma(sum, weights, kOnes, kOnes);
#pragma unroll
        for (int d = 0; d < kDimTiles; d += 2) {
          AddValues<kHeadDim>(mix[d], mix[d + 1], weights, values + block * 16 * (kHeadDim + kPad),
                              d * 8);
        }
      }
    }
    if (tile % kSegmentTiles == kSegmentTiles - 1 || tile == num_tiles - 1) {
      end_segment(tile < kSegmentTiles);
    }
    __syncthreads();
  }
  WaitForCopies<0>();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp_row + g + half * 8;
    if (row >= num_rows) continue;
    const int64_t token = sequence.first_row + row / args.group;
    const int64_t head = token * args.num_heads + kv_head * args.group + row % args.group;
    BFloat16* const out = args.output + head * kHeadDim;
#pragma unroll
    for (int d = 0; d < kDimTiles; ++d) {
      StorePair(out + d * 8 + 2 * t,
                RoundPair(__fdiv_rn(shared.mix[d * 4 + 2 * half][thread], total.sum[half]),
                          __fdiv_rn(shared.mix[d * 4 + 2 * half + 1][thread], total.sum[half])));
    }
  }
}

}  // namespace

template <int kHeadDim>
absl::Status LaunchPrefill(const AttentionKernelArgs& args, int num_sequences, int max_rows,
                           const Stream& stream) {
  const dim3 grid(static_cast<unsigned>((max_rows + kTileRows - 1) / kTileRows),
                  static_cast<unsigned>(args.num_kv_heads), static_cast<unsigned>(num_sequences));
  return Launch("AttentionPrefill", PrefillKernel<kHeadDim>, grid, kThreads,
                sizeof(PrefillShared<kHeadDim>), stream, args);
}
template absl::Status LaunchPrefill<32>(const AttentionKernelArgs&, int, int, const Stream&);
template absl::Status LaunchPrefill<64>(const AttentionKernelArgs&, int, int, const Stream&);
template absl::Status LaunchPrefill<128>(const AttentionKernelArgs&, int, int, const Stream&);

}  // namespace conclave::cuda
