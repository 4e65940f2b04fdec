#pragma once

#include "kernels/cuda/linear.h"
#include "kernels/cuda/platform.cuh"

// What the kernels of products share: which rows a thread block computes, where results go, how a
// variant is launched; and of the skinny and the tiled one, which operand lies in which register
// and in what order k is summed. Weights are operand A of an mma (16 output features), activations
// operand B (8 rows).
//
// A lane holds 8 neighbouring values of k, which it loads at once: of a chunk of 32 k, lane 4 g + t
// those from 8 t. An mma sums over k and does not ask which k they are, so that one of a pair of
// mmas takes the first four of each lane's eight, the other the rest.
namespace conclave::cuda {

inline constexpr int kChunk = 32;  // values of k in one load of a lane and two mmas
inline constexpr int kParts = 8;   // K is summed in so many parts, which are then added in order

struct GemmArgs {
  const BFloat16* input;   // rows of `in_features`
  const int32_t* row_ids;  // [rows]: row of `input`; null: the row itself
  const int32_t* offsets;  // [num_groups + 1]: first row of each group; null: one group
  const unsigned char* values;
  const float* scales;
  float* output_f32;      // or null
  BFloat16* output_bf16;  // or null
  int64_t num_rows;       // without offsets
  int64_t in_features;
  int64_t out_features;  // rows of one matrix; with SwiGLU gate's and up's together
  int num_groups;
  bool accumulate;
};

// Values of k in one of the kParts: the same for every kernel, row count and device.
CONCLAVE_DEVICE int64_t PartSize(int64_t in_features) {
  return (in_features + kParts * kChunk - 1) / (kParts * kChunk) * kChunk;
}

struct RowTile {
  int group;      // -1: this thread block has nothing to do
  int64_t first;  // row of the output, and index into row_ids
  int count;
};

// Tiles of `tile_rows` rows of one group each, numbered through all groups. Called by whole warps.
CONCLAVE_DEVICE RowTile FindRowTile(const GemmArgs& args, int64_t tile, int tile_rows) {
  if (args.offsets == nullptr) {
    const int64_t first = tile * tile_rows;
    if (first >= args.num_rows) return {-1, 0, 0};
    const int64_t left = args.num_rows - first;
    return {0, first, left < tile_rows ? static_cast<int>(left) : tile_rows};
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  int wanted = static_cast<int>(tile);
  for (int base = 0; base < args.num_groups; base += kWarpSize) {
    const int group = base + lane;
    const int begin = group < args.num_groups ? args.offsets[group] : 0;
    const int rows = group < args.num_groups ? args.offsets[group + 1] - begin : 0;
    const int tiles = (rows + tile_rows - 1) / tile_rows;
    int through = tiles;  // of this lane's group and the ones before
    for (int delta = 1; delta < kWarpSize; delta *= 2) {
      const int before = __shfl_up_sync(kAllLanes, through, delta);
      if (lane >= delta) through += before;
    }
    const unsigned past = __ballot_sync(kAllLanes, through > wanted);
    if (past == 0) {
      wanted -= __shfl_sync(kAllLanes, through, kWarpSize - 1);
      continue;
    }
    const int owner = __ffs(past) - 1;
    const int owner_begin = __shfl_sync(kAllLanes, begin, owner);
    const int owner_rows = __shfl_sync(kAllLanes, rows, owner);
    const int skipped = wanted - __shfl_sync(kAllLanes, through - tiles, owner);
    const int left = owner_rows - skipped * tile_rows;
    return {base + owner, int64_t{owner_begin} + int64_t{skipped} * tile_rows,
            left < tile_rows ? left : tile_rows};
  }
  return {-1, 0, 0};
}

// Exact for all but NaN, whose exponent is in E4M3 a number's: the bits of the exponent lie in the
// lower four of a float's, which is then 2^120 too small.
CONCLAVE_DEVICE float WidenFp8(uint32_t bits) {
  const float small = __uint_as_float((bits & 0x80u) << 24 | (bits & 0x7fu) << 20);
  return (bits & 0x7fu) == 0x7fu ? __uint_as_float(0x7fc00000u) : small * 0x1p120f;
}

CONCLAVE_DEVICE uint32_t ScaledPair(uint32_t bits, float scale) {
  return RoundPair(__fmul_rn(WidenFp8(bits & 0xffu), scale),
                   __fmul_rn(WidenFp8(bits >> 8 & 0xffu), scale));
}

// Eight FP8 weights as BF16.
CONCLAVE_DEVICE uint4 WidenEight(uint2 bits, float scale) {
  return make_uint4(ScaledPair(bits.x, scale), ScaledPair(bits.x >> 16, scale),
                    ScaledPair(bits.y, scale), ScaledPair(bits.y >> 16, scale));
}

// d += (two rows of weights, 8 apart) times (activations), over the 32 k of a chunk.
CONCLAVE_DEVICE void MultiplyChunk(float (&d)[4], const uint4& upper, const uint4& lower,
                                   const uint4& x) {
  const uint32_t first[4] = {upper.x, lower.x, upper.y, lower.y};
  Mma(d, first, x.x, x.y);
  const uint32_t second[4] = {upper.z, lower.z, upper.w, lower.w};
  Mma(d, second, x.z, x.w);
}

// One element of the product, finished: row `row`, feature `feature`.
CONCLAVE_DEVICE void StoreElement(const GemmArgs& args, int64_t row, int64_t feature,
                                  int64_t row_width, float value) {
  const int64_t at = row * row_width + feature;
  if (args.output_bf16 != nullptr) {
    args.output_bf16[at] = Round(value);
  } else {
    args.output_f32[at] = args.accumulate ? args.output_f32[at] + value : value;
  }
}

CONCLAVE_DEVICE float SiluTimes(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

// Grids: x over features, y over row tiles.
absl::Status LaunchSkinnyGemm(const GemmArgs& args, WeightFormat format, bool swiglu,
                              int64_t max_rows, const Stream& stream);
absl::Status LaunchTiledGemm(const GemmArgs& args, WeightFormat format, bool swiglu,
                             int64_t max_rows, const Stream& stream);
// Compute capability 9.0 alone.
absl::Status LaunchWgmmaGemm(const GemmArgs& args, WeightFormat format, bool swiglu,
                             int64_t max_rows, const Stream& stream);

// Row tiles that `max_rows` rows in num_groups groups can come to.
inline int64_t MaxRowTiles(int64_t max_rows, int num_groups, int tile_rows) {
  const int64_t whole = (max_rows + tile_rows - 1) / tile_rows;
  const int64_t ragged = max_rows / tile_rows + num_groups;
  const int64_t tiles = num_groups == 1 ? whole : ragged;
  return tiles < max_rows ? tiles : max_rows;
}

// Thread blocks of a kernel, each for tile_rows rows and block_features outputs: with SwiGLU half
// as many, of which it computes gate and up.
inline dim3 GemmGrid(const GemmArgs& args, bool swiglu, int64_t block_features, int tile_rows,
                     int64_t max_rows) {
  const int64_t halves = swiglu ? 2 : 1;
  const int64_t width = args.out_features / halves, features = block_features / halves;
  return dim3(static_cast<unsigned>((width + features - 1) / features),
              static_cast<unsigned>(MaxRowTiles(max_rows, args.num_groups, tile_rows)));
}

// launch.operator()<kFormat, kSwiGlu>() of what is known only when it is called.
template <typename LaunchFn>
absl::Status LaunchVariant(WeightFormat format, bool swiglu, LaunchFn launch) {
  if (format == WeightFormat::kBf16) {
    return swiglu ? launch.template operator()<WeightFormat::kBf16, true>()
                  : launch.template operator()<WeightFormat::kBf16, false>();
  }
  return swiglu ? launch.template operator()<WeightFormat::kFp8Block128, true>()
                : launch.template operator()<WeightFormat::kFp8Block128, false>();
}

}  // namespace conclave::cuda
