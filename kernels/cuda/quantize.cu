#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cuda/check_args.h"
#include "kernels/cuda/platform.cuh"
#include "kernels/cuda/quantize.h"

namespace conclave::cuda {
namespace {

constexpr int kWarps = 4;  // of a thread block; each quantizes one group of one row
constexpr int kPerLane = kQuantizeGroup / kWarpSize;
static_assert(kPerLane == 4);
constexpr float kLargestE4M3 = 448.0f;
// A smaller scale would be no normal number: dividing by it would overflow.
constexpr float kSmallestScale = 0x1p-126f;

__global__ void QuantizeRowsKernel(const BFloat16* input, uint8_t* values, float* scales,
                                   int64_t num_rows, int64_t num_padded_rows, int64_t width) {
  AwaitPrevious();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t row = blockIdx.x;
  const int64_t group = int64_t{blockIdx.y} * kWarps + warp;
  if (group >= width / kQuantizeGroup) return;
  const int64_t at = row * width + group * kQuantizeGroup + lane * kPerLane;
  uint2 x = make_uint2(0, 0);
  if (row < num_rows) x = *reinterpret_cast<const uint2*>(input + at);
  const float v[kPerLane] = {WidenLow(x.x), WidenHigh(x.x), WidenLow(x.y), WidenHigh(x.y)};
  float largest = 0;
  for (int i = 0; i < kPerLane; ++i) largest = fmaxf(largest, fabsf(v[i]));
  largest = WarpMax(largest);
  const float scale = fmaxf(__fdiv_rn(largest, kLargestE4M3), kSmallestScale);
  const uint32_t low = RoundFp8Pair(__fdiv_rn(v[0], scale), __fdiv_rn(v[1], scale));
  const uint32_t high = RoundFp8Pair(__fdiv_rn(v[2], scale), __fdiv_rn(v[3], scale));
  *reinterpret_cast<uint32_t*>(values + at) = low | high << 16;
  if (lane == 0) scales[group * num_padded_rows + row] = scale;
}

}  // namespace

absl::Status QuantizeRows(const QuantizeRowsArgs& args, const Stream& stream) {
  RETURN_IF_ERROR(CheckRange("width", args.width, 1, limits::kMaxHiddenSize));
  RETURN_IF_ERROR(CheckMultiple("width", args.width, kQuantizeGroup));
  RETURN_IF_ERROR(CheckRange("num_rows", args.num_rows, 0, kMaxRows));
  RETURN_IF_ERROR(CheckRange("num_padded_rows", args.num_padded_rows, args.num_rows, kMaxRows));
  if (args.num_padded_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(
      CheckNotNull({{"input", args.input}, {"values", args.values}, {"scales", args.scales}}));
  const int64_t groups = args.width / kQuantizeGroup;
  const dim3 grid(static_cast<unsigned>(args.num_padded_rows),
                  static_cast<unsigned>((groups + kWarps - 1) / kWarps));
  return Launch("QuantizeRows", QuantizeRowsKernel, grid, kWarps * kWarpSize, 0, stream, args.input,
                args.values, args.scales, args.num_rows, args.num_padded_rows, args.width);
}

}  // namespace conclave::cuda
