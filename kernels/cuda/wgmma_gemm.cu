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
constexpr int kWeightBytes = kFeatures * kTileRowBytes;
constexpr int kStageBytes = kWeightBytes + kRows * kTileRowBytes;
constexpr int kSharedBytes = kStages * kStageBytes + kTileAlignment;
static_assert(kSharedBytes <= kMaxSharedBytesHopper);
static_assert(kStageBytes % kTileAlignment == 0 && kWeightBytes % kTileAlignment == 0);
static_assert(kThreads / 128 * kFeatureTiles * 64 == kFeatures);

// Row `index` of the thread block's weights: 64 for each warpgroup's two tiles. With SwiGLU those
// are the gate's and the up's of the same features, so that one thread has both.
template <bool kSwiGlu>
CONCLAVE_DEVICE int64_t FeatureOf(int index, int64_t first_feature) {
  return first_feature + (kSwiGlu ? index / 128 * 64 + index % 64 : index);
}

// kRows rows and kFeatures features of one group, BF16. Unlike the other kernels it sums k from end
// to end, and 16 at a time in the hardware's order: near to their results, not equal.
template <bool kSwiGlu>
__global__ void __launch_bounds__(kThreads, 1) WgmmaGemmKernel(const GemmArgs args) {
  AwaitPrevious();
  const RowTile rows = FindRowTile(args, blockIdx.y, kRows);
  if (rows.group < 0) return;
  unsigned char* shared = DynamicShared();
  shared += (kTileAlignment - SharedAddress(shared) % kTileAlignment) % kTileAlignment;
  const int thread = static_cast<int>(threadIdx.x);
  const int warpgroup = thread / 128;
  const int64_t width = kSwiGlu ? args.out_features / 2 : args.out_features;
  const int64_t first_feature = int64_t{blockIdx.x} * (kSwiGlu ? kFeatures / 2 : kFeatures);
  const auto* const matrix = reinterpret_cast<const BFloat16*>(args.values) +
                             int64_t{rows.group} * args.out_features * args.in_features;

  const int piece = thread % kPieces;  // of each row that this thread copies
  constexpr int kStep = kThreads / kPieces;
  int64_t input_rows[kRows / kStep];
#pragma unroll
  for (int i = 0; i < kRows / kStep; ++i) {
    const int index = thread / kPieces + i * kStep;
    input_rows[i] = index >= rows.count       ? -1
                    : args.row_ids == nullptr ? rows.first + index
                                              : int64_t{args.row_ids[rows.first + index]};
  }
  const auto load_stage = [&](int64_t stage) {
    unsigned char* const weights = shared + stage % kStages * kStageBytes;
    const int64_t k = stage * kStageK + piece * 8;
    const bool k_inside = k < args.in_features;
#pragma unroll
    for (int i = 0; i < kFeatures / kStep; ++i) {
      const int index = thread / kPieces + i * kStep;
      const int64_t feature = FeatureOf<kSwiGlu>(index, first_feature);
      const int64_t row = kSwiGlu ? index / 64 % 2 * width + feature : feature;
      const bool inside = k_inside && feature < width;
      CopyAsync16(weights + TileOffset(index, piece),
                  matrix + (inside ? row * args.in_features + k : 0), inside);
    }
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
      const bool inside = k_inside && input_rows[i] >= 0;
      CopyAsync16(weights + kWeightBytes + TileOffset(thread / kPieces + i * kStep, piece),
                  args.input + (inside ? input_rows[i] * args.in_features + k : 0), inside);
    }
    CommitCopies();
  };

  float sums[kFeatureTiles][64] = {};
  for (float(&tile)[64] : sums) PinRegisters(tile);
  const int64_t num_stages = (args.in_features + kStageK - 1) / kStageK;
  for (int stage = 0; stage < kStages - 2; ++stage) load_stage(stage);
  for (int64_t stage = 0; stage < num_stages; ++stage) {
    WaitForCopies<kStages - 3>();
    FenceTiles();
    __syncthreads();
    // Into the buffer of two stages ago, which both warpgroups had multiplied before the barrier;
    // past the end it is zeros that nobody reads.
    load_stage(stage + kStages - 2);
    const uint32_t weights = SharedAddress(shared + stage % kStages * kStageBytes);
    FenceMatrixRegisters();
#pragma unroll
    for (int k = 0; k < kStageK; k += 16) {
      const uint64_t inputs = TileDescriptor(weights + kWeightBytes + k * 2);
#pragma unroll
      for (int f = 0; f < kFeatureTiles; ++f) {
        const uint32_t tile = weights + (warpgroup * kFeatureTiles + f) * 64 * kTileRowBytes;
        MmaAsync(sums[f], TileDescriptor(tile + k * 2), inputs);
      }
    }
    CommitMatrices();
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

template <bool kSwiGlu>
absl::Status LaunchOne(const GemmArgs& args, int64_t max_rows, const Stream& stream) {
  const int64_t width = kSwiGlu ? args.out_features / 2 : args.out_features;
  const int64_t features = kSwiGlu ? kFeatures / 2 : kFeatures;
  const dim3 grid(static_cast<unsigned>((width + features - 1) / features),
                  static_cast<unsigned>(MaxRowTiles(max_rows, args.num_groups, kRows)));
  return Launch("WgmmaGemm", WgmmaGemmKernel<kSwiGlu>, grid, kThreads, kSharedBytes, stream, args);
}

}  // namespace

absl::Status LaunchWgmmaGemm(const GemmArgs& args, bool swiglu, int64_t max_rows,
                             const Stream& stream) {
  return swiglu ? LaunchOne<true>(args, max_rows, stream)
                : LaunchOne<false>(args, max_rows, stream);
}

}  // namespace conclave::cuda
