#include "kernels/cuda/gemm.cuh"

namespace conclave::cuda {
namespace {

constexpr int kWarps = kParts;  // each sums one part of K
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kFeatures = 16;  // of a thread block; with SwiGLU of gate and of up each
constexpr int kInFlight = 4;   // chunks whose loads are under way together

// Where a lane finds its weights: two rows, 8 apart, of one 16-feature tile.
template <WeightFormat kFormat>
struct WeightRows {
  const unsigned char* upper;
  const unsigned char* lower;
  const float* upper_scales = nullptr;  // of this row's blocks
  const float* lower_scales = nullptr;
  bool has_upper, has_lower;

  CONCLAVE_DEVICE void Point(const GemmArgs& args, int group, int64_t feature, int64_t limit) {
    constexpr int64_t kBytes = kFormat == WeightFormat::kBf16 ? 2 : 1;
    has_upper = feature < limit;
    has_lower = feature + 8 < limit;
    const int64_t first = int64_t{group} * args.out_features;
    upper = args.values + (first + (has_upper ? feature : 0)) * args.in_features * kBytes;
    lower = args.values + (first + (has_lower ? feature + 8 : 0)) * args.in_features * kBytes;
    if constexpr (kFormat == WeightFormat::kFp8Block128) {
      const int64_t columns = (args.in_features + 127) / 128;
      const int64_t rows = (args.out_features + 127) / 128;
      const float* const scales = args.scales + int64_t{group} * rows * columns;
      upper_scales = scales + (has_upper ? feature : 0) / 128 * columns;
      lower_scales = scales + (has_lower ? feature + 8 : 0) / 128 * columns;
    }
  }
};

// Eight weights of a row from k on.
template <WeightFormat kFormat>
CONCLAVE_DEVICE uint4 LoadWeights(const unsigned char* row, const float* scales, int64_t k,
                                  bool wanted) {
  if (!wanted) return make_uint4(0, 0, 0, 0);
  if constexpr (kFormat == WeightFormat::kBf16) {
    return LoadStreaming(row + k * 2);
  } else {
    return WidenEight(LoadStreaming8(row + k), __ldg(scales + k / 128));
  }
}

// kRowTiles * 8 rows and 16 features (kSwiGlu: 16 of gate, 16 of up) of one group. Warp w sums part
// w of K; the parts are added in shared memory.
template <WeightFormat kFormat, bool kSwiGlu, int kRowTiles>
__global__ void __launch_bounds__(kThreads) SkinnyGemmKernel(const GemmArgs args) {
  AwaitPrevious();
  constexpr int kFeatureTiles = kSwiGlu ? 2 : 1;
  constexpr int kRows = kRowTiles * 8;
  // [part][feature tile][row tile][lane][4]: an mma's result as the lanes hold it.
  __shared__ float parts[kWarps][kFeatureTiles][kRowTiles][kWarpSize * 4];
  const RowTile rows = FindRowTile(args, blockIdx.y, kRows);
  if (rows.group < 0) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int g = lane / 4, t = lane % 4;
  const int64_t width = args.out_features / kFeatureTiles;
  const int64_t first_feature = int64_t{blockIdx.x} * kFeatures;

  WeightRows<kFormat> weights[kFeatureTiles];
#pragma unroll
  for (int f = 0; f < kFeatureTiles; ++f) {
    weights[f].Point(args, rows.group, f * width + first_feature + g, (f + 1) * width);
  }
  const BFloat16* inputs[kRowTiles];
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
    const int64_t row = rows.first + n * 8 + g;
    inputs[n] = n * 8 + g >= rows.count
                    ? nullptr
                    : args.input + (args.row_ids == nullptr ? row : int64_t{args.row_ids[row]}) *
                                       args.in_features;
  }

  float sums[kFeatureTiles][kRowTiles][4] = {};
  const int64_t part = PartSize(args.in_features);
  const int64_t begin = warp * part;
  const int64_t end = begin + part < args.in_features ? begin + part : args.in_features;
  for (int64_t k = begin; k < end; k += kInFlight * kChunk) {
    uint4 upper[kInFlight][kFeatureTiles], lower[kInFlight][kFeatureTiles];
    uint4 x[kInFlight][kRowTiles];
#pragma unroll
    for (int c = 0; c < kInFlight; ++c) {
      const int64_t at = k + c * kChunk + t * 8;
      const bool inside = k + c * kChunk < end;
#pragma unroll
      for (int f = 0; f < kFeatureTiles; ++f) {
        upper[c][f] = LoadWeights<kFormat>(weights[f].upper, weights[f].upper_scales, at,
                                           inside && weights[f].has_upper);
        lower[c][f] = LoadWeights<kFormat>(weights[f].lower, weights[f].lower_scales, at,
                                           inside && weights[f].has_lower);
      }
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        x[c][n] = inside && inputs[n] != nullptr ? *reinterpret_cast<const uint4*>(inputs[n] + at)
                                                 : make_uint4(0, 0, 0, 0);
      }
    }
#pragma unroll
    for (int c = 0; c < kInFlight; ++c) {
      if (k + c * kChunk >= end) break;
#pragma unroll
      for (int f = 0; f < kFeatureTiles; ++f) {
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
          MultiplyChunk(sums[f][n], upper[c][f], lower[c][f], x[c][n]);
        }
      }
    }
  }
#pragma unroll
  for (int f = 0; f < kFeatureTiles; ++f) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) parts[warp][f][n][lane * 4 + i] = sums[f][n][i];
    }
  }
  __syncthreads();

  for (int e = static_cast<int>(threadIdx.x); e < kFeatures * kRows; e += kThreads) {
    const int feature = e % kFeatures, row = e / kFeatures;
    if (first_feature + feature >= width || row >= rows.count) continue;
    const int column = row % 8;
    const int at = (feature % 8 * 4 + column / 2) * 4 + feature / 8 * 2 + column % 2;
    float totals[kFeatureTiles] = {};
#pragma unroll
    for (int f = 0; f < kFeatureTiles; ++f) {
      for (int p = 0; p * part < args.in_features; ++p) {
        totals[f] = __fadd_rn(totals[f], parts[p][f][row / 8][at]);
      }
    }
    float value = totals[0];
    if constexpr (kSwiGlu) value = SiluTimes(totals[0], totals[1]);
    StoreElement(args, rows.first + row, first_feature + feature, width, value);
  }
}

template <WeightFormat kFormat, bool kSwiGlu, int kRowTiles>
absl::Status LaunchOne(const GemmArgs& args, int64_t max_rows, const Stream& stream) {
  const int64_t width = kSwiGlu ? args.out_features / 2 : args.out_features;
  const dim3 grid(static_cast<unsigned>((width + kFeatures - 1) / kFeatures),
                  static_cast<unsigned>(MaxRowTiles(max_rows, args.num_groups, kRowTiles * 8)));
  return Launch("SkinnyGemm", SkinnyGemmKernel<kFormat, kSwiGlu, kRowTiles>, grid, kThreads, 0,
                stream, args);
}

template <WeightFormat kFormat, bool kSwiGlu>
absl::Status LaunchForRows(const GemmArgs& args, int64_t max_rows, const Stream& stream) {
  // As many rows of a group as there are on average. More would only multiply zeros; fewer would
  // read weights again.
  const int64_t average = (max_rows + args.num_groups - 1) / args.num_groups;
  if (average <= 8) return LaunchOne<kFormat, kSwiGlu, 1>(args, max_rows, stream);
  if (average <= 16) return LaunchOne<kFormat, kSwiGlu, 2>(args, max_rows, stream);
  return LaunchOne<kFormat, kSwiGlu, 4>(args, max_rows, stream);
}

}  // namespace

absl::Status LaunchSkinnyGemm(const GemmArgs& args, WeightFormat format, bool swiglu,
                              int64_t max_rows, const Stream& stream) {
  return LaunchVariant(format, swiglu, [&]<WeightFormat kFormat, bool kSwiGlu>() {
    return LaunchForRows<kFormat, kSwiGlu>(args, max_rows, stream);
  });
}

}  // namespace conclave::cuda
