#include "kernels/cuda/gemm.cuh"

namespace conclave::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kFeatures = 128;  // of a thread block; with SwiGLU 64 of gate and 64 of up
constexpr int kRows = 64;
constexpr int kStages = 3;
constexpr int kStageChunks = 2;  // chunks of 32 k in one stage of the pipeline
// Warps: 4 over features, 2 over rows; each 32 features (two tiles of 16) by 32 rows (four of 8).
constexpr int kFeatureTiles = 2;
constexpr int kRowTiles = 4;

constexpr int kInputBytes = kStageChunks * kRows * kChunk * 2;

template <WeightFormat kFormat>
inline constexpr int kWeightBytes = kStageChunks* kFeatures* kChunk*(kFormat == WeightFormat::kBf16
                                                                         ? 2
                                                                         : 1);
template <WeightFormat kFormat>
inline constexpr int kSharedBytes = kStages*(kWeightBytes<kFormat> + kInputBytes);
// Two thread blocks to a multiprocessor.
static_assert(2 * kSharedBytes<WeightFormat::kBf16> <= kMaxSharedBytes);

// Row `index` of the thread block's features: without SwiGLU they lie one after another. With it,
// every 32 are 16 of gate and the same 16 of up, so that one warp has both.
template <bool kSwiGlu>
CONCLAVE_DEVICE int64_t FeatureRow(int index, int64_t first_feature, int64_t width) {
  if constexpr (!kSwiGlu) return first_feature + index;
  return (index / 16 % 2) * width + first_feature + index / 32 * 16 + index % 16;
}

// kRows rows and kFeatures features of one group. A stage in shared memory: weights, then rows,
// each as [chunk][row][32 k]: the 16 bytes (8, if FP8) that 8 (16) lanes read at once then lie one
// after another and meet in no bank.
template <WeightFormat kFormat, bool kSwiGlu>
__global__ void __launch_bounds__(kThreads, 2) TiledGemmKernel(const GemmArgs args) {
  AwaitPrevious();
  constexpr int kValueBytes = kFormat == WeightFormat::kBf16 ? 2 : 1;
  constexpr int kRowBytes = kChunk * kValueBytes;  // of weights, in one chunk
  constexpr int kStageBytes = kWeightBytes<kFormat> + kInputBytes;
  const RowTile rows = FindRowTile(args, blockIdx.y, kRows);
  if (rows.group < 0) return;
  unsigned char* const shared = DynamicShared();
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int g = lane / 4, t = lane % 4;
  const int feature_warp = warp % 4, row_warp = warp / 4;
  const int64_t width = kSwiGlu ? args.out_features / 2 : args.out_features;
  const int64_t first_feature = int64_t{blockIdx.x} * (kSwiGlu ? kFeatures / 2 : kFeatures);
  const int64_t num_chunks = args.in_features / kChunk;
  const unsigned char* const matrix =
      args.values + int64_t{rows.group} * args.out_features * args.in_features * kValueBytes;

  const auto load_stage = [&](int64_t stage) {
    unsigned char* const weights = shared + stage % kStages * kStageBytes;
    unsigned char* const inputs = weights + kWeightBytes<kFormat>;
    constexpr int kPieces = kRowBytes / 16;  // of a row, in one chunk
    for (int i = thread; i < kStageChunks * kFeatures * kPieces; i += kThreads) {
      const int piece = i % kPieces, index = i / kPieces % kFeatures;
      const int chunk = i / (kPieces * kFeatures);
      const int64_t k_chunk = stage * kStageChunks + chunk;
      const int64_t row = FeatureRow<kSwiGlu>(index, first_feature, width);
      const int64_t feature = first_feature + (kSwiGlu ? index / 32 * 16 + index % 16 : index);
      const bool inside = k_chunk < num_chunks && feature < width;
      const unsigned char* const from =
          matrix +
          (inside ? (row * args.in_features + k_chunk * kChunk) * kValueBytes + piece * 16 : 0);
      CopyAsync16(weights + (chunk * kFeatures + index) * kRowBytes + piece * 16, from, inside);
    }
    for (int i = thread; i < kStageChunks * kRows * 4; i += kThreads) {
      const int piece = i % 4, index = i / 4 % kRows, chunk = i / (4 * kRows);
      const int64_t k_chunk = stage * kStageChunks + chunk;
      const bool inside = k_chunk < num_chunks && index < rows.count;
      int64_t row = 0;
      if (inside) {
        row = args.row_ids == nullptr ? rows.first + index
                                      : int64_t{args.row_ids[rows.first + index]};
      }
      const BFloat16* const from =
          args.input + (inside ? row * args.in_features + k_chunk * kChunk + piece * 8 : 0);
      CopyAsync16(inputs + ((chunk * kRows + index) * 4 + piece) * 16, from, inside);
    }
    CommitCopies();
  };

  // FP8: the scales of the lane's rows, for the 128 k being multiplied.
  [[maybe_unused]] const int64_t scale_columns = (args.in_features + 127) / 128;
  [[maybe_unused]] const int64_t scale_rows = (args.out_features + 127) / 128;
  [[maybe_unused]] const auto scale_of = [&](int tile, int half, int64_t k_chunk) -> float {
    int64_t row =
        FeatureRow<kSwiGlu>(feature_warp * 32 + tile * 16 + half * 8 + g, first_feature, width);
    if (row >= args.out_features) row = 0;
    return __ldg(args.scales + (rows.group * scale_rows + row / 128) * scale_columns +
                 k_chunk / (128 / kChunk));
  };

  float totals[kFeatureTiles][kRowTiles][4] = {};
  float sums[kFeatureTiles][kRowTiles][4] = {};
  const auto end_part = [&] {
#pragma unroll
    for (int f = 0; f < kFeatureTiles; ++f) {
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          totals[f][n][i] = __fadd_rn(totals[f][n][i], sums[f][n][i]);
          sums[f][n][i] = 0;
        }
      }
    }
  };

  const int64_t part_chunks = PartSize(args.in_features) / kChunk;
  const int64_t num_stages = (num_chunks + kStageChunks - 1) / kStageChunks;
  for (int64_t stage = 0; stage < kStages - 1; ++stage) load_stage(stage);
  int64_t left_of_part = part_chunks;
  for (int64_t stage = 0; stage < num_stages; ++stage) {
    WaitForCopies<kStages - 2>();
    __syncthreads();
    // Into the buffer that was read a stage ago; past the end it is zeros that nobody reads.
    load_stage(stage + kStages - 1);
    const unsigned char* const weights = shared + stage % kStages * kStageBytes;
    const unsigned char* const inputs = weights + kWeightBytes<kFormat>;
#pragma unroll
    for (int chunk = 0; chunk < kStageChunks; ++chunk) {
      const int64_t k_chunk = stage * kStageChunks + chunk;
      if (k_chunk >= num_chunks) break;
      uint4 x[kRowTiles];
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        const int index = row_warp * 32 + n * 8 + g;
        x[n] = *reinterpret_cast<const uint4*>(inputs + ((chunk * kRows + index) * 4 + t) * 16);
      }
#pragma unroll
      for (int f = 0; f < kFeatureTiles; ++f) {
        uint4 halves[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int index = feature_warp * 32 + f * 16 + half * 8 + g;
          const unsigned char* const from = weights + (chunk * kFeatures + index) * kRowBytes;
          if constexpr (kFormat == WeightFormat::kBf16) {
            halves[half] = *reinterpret_cast<const uint4*>(from + t * 16);
          } else {
            halves[half] = WidenEight(*reinterpret_cast<const uint2*>(from + t * 8),
                                      scale_of(f, half, k_chunk));
          }
        }
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) MultiplyChunk(sums[f][n], halves[0], halves[1], x[n]);
      }
      if (--left_of_part == 0) {
        end_part();
        left_of_part = part_chunks;
      }
    }
  }
  if (left_of_part != part_chunks) end_part();
  WaitForCopies<0>();

#pragma unroll
  for (int f = 0; f < (kSwiGlu ? 1 : kFeatureTiles); ++f) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = row_warp * 32 + n * 8 + 2 * t + i % 2;
        const int64_t feature =
            first_feature + feature_warp * (kSwiGlu ? 16 : 32) + f * 16 + i / 2 * 8 + g;
        if (row >= rows.count || feature >= width) continue;
        float value = totals[f][n][i];
        if constexpr (kSwiGlu) value = SiluTimes(totals[0][n][i], totals[1][n][i]);
        StoreElement(args, rows.first + row, feature, width, value);
      }
    }
  }
}

template <WeightFormat kFormat, bool kSwiGlu>
absl::Status LaunchOne(const GemmArgs& args, int64_t max_rows, const Stream& stream) {
  const dim3 grid = GemmGrid(args, kSwiGlu, kFeatures, kRows, max_rows);
  return Launch("TiledGemm", TiledGemmKernel<kFormat, kSwiGlu>, grid, kThreads,
                kSharedBytes<kFormat>, stream, args);
}

}  // namespace

absl::Status LaunchTiledGemm(const GemmArgs& args, WeightFormat format, bool swiglu,
                             int64_t max_rows, const Stream& stream) {
  return LaunchVariant(format, swiglu, [&]<WeightFormat kFormat, bool kSwiGlu>() {
    return LaunchOne<kFormat, kSwiGlu>(args, max_rows, stream);
  });
}

}  // namespace conclave::cuda
