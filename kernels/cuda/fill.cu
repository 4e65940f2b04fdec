#include "common/status_macros.h"
#include "kernels/cuda/check_args.h"
#include "kernels/cuda/fill.h"
#include "kernels/cuda/platform.cuh"

namespace conclave::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 4096;  // enough for every multiprocessor; each thread takes a stride

// splitmix64's finisher: every bit of the index moves every bit of the result.
CONCLAVE_DEVICE uint64_t Mix(uint64_t seed, int64_t index) {
  uint64_t x = seed + static_cast<uint64_t>(index + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

__global__ void FillBf16Kernel(BFloat16* values, int64_t count, float half_width, uint64_t seed) {
  AwaitPrevious();
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const float unit = static_cast<float>(Mix(seed, i) >> 40) * 0x1p-23f - 1;  // -1 .. 1
    values[i] = Round(unit * half_width);
  }
}

__global__ void FillFp8Kernel(uint8_t* values, int64_t count, uint64_t seed) {
  AwaitPrevious();
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const uint64_t bits = Mix(seed, i);
    values[i] = static_cast<uint8_t>((bits & 0x80) | (bits >> 8) % 0x40);
  }
}

unsigned BlocksFor(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

absl::Status Check(const void* values, int64_t count) {
  if (count < 0) return errors::OutOfRange("count", count, "at least 0");
  return count == 0 ? absl::OkStatus() : CheckNotNull({{"values", values}});
}

}  // namespace

absl::Status FillRandomBf16(BFloat16* values, int64_t count, float deviation, uint64_t seed,
                            const Stream& stream) {
  RETURN_IF_ERROR(Check(values, count));
  constexpr float kSqrt3 = 1.7320508f;  // half the width of a uniform distribution of deviation 1
  return Launch("FillRandomBf16", FillBf16Kernel, BlocksFor(count), kThreads, 0, stream, values,
                count, deviation * kSqrt3, seed);
}

absl::Status FillRandomFp8(uint8_t* values, int64_t count, uint64_t seed, const Stream& stream) {
  RETURN_IF_ERROR(Check(values, count));
  return Launch("FillRandomFp8", FillFp8Kernel, BlocksFor(count), kThreads, 0, stream, values,
                count, seed);
}

}  // namespace conclave::cuda
