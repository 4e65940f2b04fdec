#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace conclave::cuda {
namespace {

constexpr int kThreads = 256;     // two warpgroups
constexpr int kFeatures = 256;    // of a thread block; with SwiGLU 128 of gate and 128 of up
constexpr int kFeatureTiles = 2;  // of 64 features, for each warpgroup
constexpr int kRows = 128;
constexpr int kStageK = 64;  // a tile's row
constexpr int kPieces = kTileRowBytes / 16;
// One is multiplied, one may still be, two are under way.
constexpr int kStages = 4;
constexpr int kWeightTileBytes = kFeatures * kTileRowBytes;
// FP8 arrives as it is and is widened into tiles: one is multiplied, one may still be, one is
// filled.
constexpr int kWidenedTiles = 3;

// In one stage of what arrives.
template <WeightFormat kFormat>
inline constexpr int kWeightBytes =
    kFormat == WeightFormat::kBf16 ? kWeightTileBytes : kWeightTileBytes / 2;
template <WeightFormat kFormat>
inline constexpr int kStageBytes = kWeightBytes<kFormat> + kRows* kTileRowBytes;
template <WeightFormat kFormat>
inline constexpr int kWidenedBytes =
    kFormat == WeightFormat::kBf16 ? 0 : kWidenedTiles* kWeightTileBytes;
template <WeightFormat kFormat>
inline constexpr int kSharedBytes =
    kStages* kStageBytes<kFormat> + kWidenedBytes<kFormat> + kTileAlignment;
static_assert(kSharedBytes<WeightFormat::kBf16> <= kMaxSharedBytesHopper);
static_assert(kSharedBytes<WeightFormat::kFp8Block128> <= kMaxSharedBytesHopper);
static_assert(kWeightBytes<WeightFormat::kFp8Block128> % kTileAlignment == 0);
static_assert(kThreads / 128 * kFeatureTiles * 64 == kFeatures);

// Row `index` of the thread block's weights: 64 for each warpgroup's two tiles. With SwiGLU those
// are the gate's and the up's of the same features, so that one thread has both.
template <bool kSwiGlu>
CONCLAVE_DEVICE int64_t FeatureOf(int index, int64_t first_feature) {
  return first_feature + (kSwiGlu ? index / 128 * 64 + index % 64 : index);
}

// kRows rows and kFeatures features of one group. Unlike the other kernels it sums k from end
// to end, and 16 at a time in the hardware's order: near to their results, not equal.
template <WeightFormat kFormat, bool kSwiGlu>
__global__ void __launch_bounds__(kThreads, 1) WgmmaGemmKernel(const GemmArgs args) {
  AwaitPrevious();
  constexpr bool kFp8 = kFormat == WeightFormat::kFp8Block128;
  constexpr int kValueBytes = kFp8 ? 1 : 2;
  const RowTile rows = FindRowTile(args, blockIdx.y, kRows);
  if (rows.group < 0) return;
  unsigned char* shared = DynamicShared();
  shared += (kTileAlignment - SharedAddress(shared) % kTileAlignment) % kTileAlignment;
  const int thread = static_cast<int>(threadIdx.x);
  const int warpgroup = thread / 128;
  const int64_t width = kSwiGlu ? args.out_features / 2 : args.out_features;
  const int64_t first_feature = int64_t{blockIdx.x} * (kSwiGlu ? kFeatures / 2 : kFeatures);
  const unsigned char* const matrix =
      args.values + int64_t{rows.group} * args.out_features * args.in_features * kValueBytes;

  const int piece = thread % kPieces;  // of each row of inputs that this thread copies
  constexpr int kStep = kThreads / kPieces;
  // The same of weights, whose rows are half as long in FP8.
  constexpr int kWeightPieces = kPieces * kValueBytes / 2;
  constexpr int kWeightStep = kThreads / kWeightPieces;
  const int weight_piece = thread % kWeightPieces;
  int64_t input_rows[kRows / kStep];
#pragma unroll
  for (int i = 0; i < kRows / kStep; ++i) {
    const int index = thread / kPieces + i * kStep;
    input_rows[i] = index >= rows.count       ? -1
                    : args.row_ids == nullptr ? rows.first + index
                                              : int64_t{args.row_ids[rows.first + index]};
  }
  // Row of the matrix that is the tile's row `index`; negative: there is none.
  const auto weight_row = [&](int index) -> int64_t {
    const int64_t feature = FeatureOf<kSwiGlu>(index, first_feature);
    if (feature >= width) return -1;
    return kSwiGlu ? index / 64 % 2 * width + feature : feature;
  };
  const auto load_stage = [&](int64_t stage) {
    unsigned char* const weights = shared + stage % kStages * kStageBytes<kFormat>;
    const int64_t weight_k = stage * kStageK + weight_piece * (16 / kValueBytes);
#pragma unroll
    for (int i = 0; i < kFeatures / kWeightStep; ++i) {
      const int index = thread / kWeightPieces + i * kWeightStep;
      const int64_t row = weight_row(index);
      const bool inside = row >= 0 && weight_k < args.in_features;
      CopyAsync16(weights + (kFp8 ? (index * kWeightPieces + weight_piece) * 16
                                  : TileOffset(index, weight_piece)),
                  matrix + (inside ? (row * args.in_features + weight_k) * kValueBytes : 0),
                  inside);
    }
    const int64_t k = stage * kStageK + piece * 8;
    const bool k_inside = k < args.in_features;
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
      const bool inside = k_inside && input_rows[i] >= 0;
      CopyAsync16(weights + kWeightBytes<kFormat> + TileOffset(thread / kPieces + i * kStep, piece),
                  args.input + (inside ? input_rows[i] * args.in_features + k : 0), inside);
    }
    CommitCopies();
  };
  unsigned char* const widened = shared + kStages * kStageBytes<kFormat>;
  // FP8: what this thread has copied itself, and waited for, as BF16 in a tile.
  [[maybe_unused]] const auto widen_stage = [&](int64_t stage) {
    const unsigned char* const from = shared + stage % kStages * kStageBytes<kFormat>;
    unsigned char* const to = widened + stage % kWidenedTiles * kWeightTileBytes;
    const int64_t scale_columns = (args.in_features + 127) / 128;
    const int64_t scale_rows = (args.out_features + 127) / 128;
    const int64_t scale_column = stage * kStageK / 128;
#pragma unroll
    for (int i = 0; i < kFeatures / kWeightStep; ++i) {
      const int index = thread / kWeightPieces + i * kWeightStep;
      const int64_t row = weight_row(index);
      const float scale = __ldg(
          args.scales + (rows.group * scale_rows + (row < 0 ? 0 : row) / 128) * scale_columns +
          scale_column);
      const uint4 bits =
          *reinterpret_cast<const uint4*>(from + (index * kWeightPieces + weight_piece) * 16);
      *reinterpret_cast<uint4*>(to + TileOffset(index, 2 * weight_piece)) =
          WidenEight(make_uint2(bits.x, bits.y), scale);
      *reinterpret_cast<uint4*>(to + TileOffset(index, 2 * weight_piece + 1)) =
          WidenEight(make_uint2(bits.z, bits.w), scale);
    }
  };

  float sums[kFeatureTiles][64] = {};
  for (float(&tile)[64] : sums) PinRegisters(tile);
  const int64_t num_stages = (args.in_features + kStageK - 1) / kStageK;
  for (int stage = 0; stage < kStages - 2; ++stage) load_stage(stage);
  if constexpr (kFp8) {
    WaitForCopies<kStages - 3>();
    widen_stage(0);
  }
  for (int64_t stage = 0; stage < num_stages; ++stage) {
    if constexpr (!kFp8) WaitForCopies<kStages - 3>();
    FenceTiles();
    __syncthreads();
    // Into the buffer of two stages ago, which both warpgroups had multiplied before the barrier;
    // past the end it is zeros that nobody reads.
    load_stage(stage + kStages - 2);
    unsigned char* const arrived = shared + stage % kStages * kStageBytes<kFormat>;
    const uint32_t inputs = SharedAddress(arrived + kWeightBytes<kFormat>);
    const uint32_t weights =
        SharedAddress(kFp8 ? widened + stage % kWidenedTiles * kWeightTileBytes : arrived);
    FenceMatrixRegisters();
#pragma unroll
    for (int k = 0; k < kStageK; k += 16) {
      const uint64_t input_tile = TileDescriptor(inputs + k * 2);
#pragma unroll
      for (int f = 0; f < kFeatureTiles; ++f) {
        const uint32_t tile = weights + (warpgroup * kFeatureTiles + f) * 64 * kTileRowBytes;
        MmaAsync(sums[f], TileDescriptor(tile + k * 2), input_tile);
      }
    }
    CommitMatrices();
    if constexpr (kFp8) {
      // The next stage, while this one is multiplied: into the tile of two stages ago, as above.
      WaitForCopies<kStages - 3>();
      if (stage + 1 < num_stages) widen_stage(stage + 1);
    }
    WaitForMatrices<1>();
  }
  WaitForMatrices<0>();
  for (float(&tile)[64] : sums) PinRegisters(tile);
  WaitForCopies<0>();

  const int warp = thread / kWarpSize % 4, lane = thread % kWarpSize;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int f = 0; f < (kSwiGlu ? 1 : kFeatureTiles); ++f) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const int row = i / 4 * 8 + 2 * t + i % 2;
      const int index = (warpgroup * kFeatureTiles + f) * 64 + warp * 16 + i / 2 % 2 * 8 + g;
      const int64_t feature = FeatureOf<kSwiGlu>(index, first_feature);
      if (row >= rows.count || feature >= width) continue;
      float value = sums[f][i];
      if constexpr (kSwiGlu) value = SiluTimes(sums[0][i], sums[1][i]);
      StoreElement(args, rows.first + row, feature, width, value);
    }
  }
}

template <WeightFormat kFormat, bool kSwiGlu>
absl::Status LaunchOne(const GemmArgs& args, int64_t max_rows, const Stream& stream) {
  const dim3 grid = GemmGrid(args, kSwiGlu, kFeatures, kRows, max_rows);
  return Launch("WgmmaGemm", WgmmaGemmKernel<kFormat, kSwiGlu>, grid, kThreads,
                kSharedBytes<kFormat>, stream, args);
}

}  // namespace

absl::Status LaunchWgmmaGemm(const GemmArgs& args, WeightFormat format, bool swiglu,
                             int64_t max_rows, const Stream& stream) {
  return LaunchVariant(format, swiglu, [&]<WeightFormat kFormat, bool kSwiGlu>() {
    return LaunchOne<kFormat, kSwiGlu>(args, max_rows, stream);
  });
}

}  // namespace conclave::cuda
