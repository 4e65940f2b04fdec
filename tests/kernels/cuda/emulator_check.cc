// The emulator itself: what it must do right, and what it must refuse.

#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/platform.cuh"
#include "tests/kernels/kernel_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave::cuda {
namespace {

void RunTwice(void (*kernel)(float*), unsigned threads, float* data, size_t shared_bytes = 0) {
  emulation::RunGrid("TestKernel", 2, threads, shared_bytes, [=] { kernel(data); });
}

__global__ void ReverseThroughShared(float* data) {
  auto* const shared = reinterpret_cast<float*>(DynamicShared());
  shared[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  const float other = shared[blockDim.x - 1 - threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = other;
}

TEST(EmulatorTest, BarriersSeparateWritesFromReads) {
  std::vector<float> data(96);
  for (int i = 0; i < 96; ++i) data[i] = static_cast<float>(i);
  const std::vector<float> before = data;
  RunTwice(ReverseThroughShared, 96, data.data(),
           96 * sizeof(float));  // by two thread blocks: twice
  EXPECT_EQ(data, before);
}

__global__ void AwaitsInOneWarp(float* data) {
  if (threadIdx.x < 32) AwaitPrevious();
  data[threadIdx.x] = 1;
}

TEST(EmulatorTest, AProgrammaticLaunchMustAwaitTheKernelBefore) {
  std::vector<float> data(64);
  const auto run = [&](unsigned threads) {
    emulation::RunGrid(
        "TestKernel", 1, threads, 0, [&] { AwaitsInOneWarp(data.data()); }, /*must_await=*/true);
  };
  run(32);
  EXPECT_EQ(data[31], 1);
  EXPECT_DEATH(run(64), "TestKernel: may run beside the kernel before it");
}

__global__ void MissingBarrier(float* data) {
  auto* const shared = reinterpret_cast<float*>(DynamicShared());
  shared[threadIdx.x] = 1;
  data[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

TEST(EmulatorTest, AMissingBarrierShowsAsNaN) {
  std::vector<float> data(64);
  RunTwice(MissingBarrier, 64, data.data(), 64 * sizeof(float));
  EXPECT_TRUE(std::isnan(data[0]) || std::isnan(data[63]));
}

__global__ void DivergentBarrier(float* data) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    data[0] = 1;
    __syncthreads();
  }
}
__global__ void BarrierAfterExit(float*) {
  if (threadIdx.x == 5) return;
  __syncthreads();
}
__global__ void ShuffleOfAFewLanes(float* data) {
  if (threadIdx.x < 16) data[threadIdx.x] = WarpSum(1);
}
__global__ void NeverCommitted(float* data) { CopyAsync16(DynamicShared(), data, true); }

TEST(EmulatorDeathTest, RefusesWhatWouldHang) {
  std::vector<float> data(64);
  EXPECT_DEATH(RunTwice(DivergentBarrier, 64, data.data()), "TestKernel: divergent barrier");
  EXPECT_DEATH(RunTwice(BarrierAfterExit, 64, data.data()), "TestKernel: hangs");
  EXPECT_DEATH(RunTwice(ShuffleOfAFewLanes, 32, data.data()), "TestKernel: hangs");
  EXPECT_DEATH(RunTwice(ReverseThroughShared, 33, data.data(), 256), "a thread block of 33");
  EXPECT_DEATH(RunTwice(NeverCommitted, 32, data.data(), 512), "never committed");
}

__global__ void Shuffles(float* data) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float value = static_cast<float>(lane);
  float* const out = data + threadIdx.x * 6;
  out[0] = __shfl_sync(kAllLanes, value, 7);
  out[1] = __shfl_xor_sync(kAllLanes, value, 5);
  out[2] = __shfl_up_sync(kAllLanes, value, 3);
  out[3] = WarpSum(value);
  out[4] = WarpMax(-value);
  out[5] = static_cast<float>(__popc(__ballot_sync(kAllLanes, lane % 3 == 0)));
}

TEST(EmulatorTest, LanesSeeOneAnother) {
  std::vector<float> data(64 * 6);
  RunTwice(Shuffles, 64, data.data());
  for (int thread = 0; thread < 64; ++thread) {
    const int lane = thread % 32;
    const float* const out = data.data() + thread * 6;
    EXPECT_EQ(out[0], 7);
    EXPECT_EQ(out[1], lane ^ 5);
    EXPECT_EQ(out[2], lane < 3 ? lane : lane - 3);
    EXPECT_EQ(out[3], 31 * 32 / 2);
    EXPECT_EQ(out[4], 0);
    EXPECT_EQ(out[5], 11);
  }
}

// One product through both forms of LoadMatrices and Mma, against plain loops: a layout that is
// wrong in one of them does not cancel, as A is read plain and B transposed.
struct MmaOperands {
  std::vector<BFloat16> a = RandomBf16(16 * 16, 1);
  std::vector<BFloat16> b = RandomBf16(16 * 16, 2);  // [k][n], of which 8 columns a product
  std::vector<float> d = std::vector<float>(16 * 16);
};

__global__ void MultiplyKernel(MmaOperands* operands) {
  const int lane = static_cast<int>(threadIdx.x);
  auto* const a = reinterpret_cast<BFloat16*>(DynamicShared());
  BFloat16* const b = a + 16 * 24;
  for (int i = lane; i < 32; i += 32) {
    const int row = i / 2, half = i % 2 * 8;
    CopyAsync16(a + row * 24 + half, operands->a.data() + row * 16 + half, true);
    CopyAsync16(b + row * 24 + half, operands->b.data() + row * 16 + half, true);
  }
  CommitCopies();
  WaitForCopies<0>();
  __syncthreads();
  uint32_t fragment_a[4], fragment_b[4];
  LoadMatrices<false>(fragment_a, a + lane % 16 * 24 + lane / 16 * 8);
  LoadMatrices<true>(fragment_b, b + (lane / 8 % 2 * 8 + lane % 8) * 24 + lane / 16 * 8);
  for (int tile = 0; tile < 2; ++tile) {
    float d[4] = {1, 1, 1, 1};
    Mma(d, fragment_a, fragment_b[2 * tile], fragment_b[2 * tile + 1]);
    for (int i = 0; i < 4; ++i) {
      operands->d[(lane / 4 + i / 2 * 8) * 16 + tile * 8 + lane % 4 * 2 + i % 2] = d[i];
    }
  }
}

TEST(EmulatorTest, MmaMultipliesAsPtxLaysOut) {
  MmaOperands operands;
  emulation::RunGrid("MultiplyKernel", 2, 32, 2 * 16 * 24 * 2, [&] { MultiplyKernel(&operands); });
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 16; ++column) {
      float expected = 1;
      for (int k = 0; k < 16; ++k) {
        expected += ToFloat(operands.a[row * 16 + k]) * ToFloat(operands.b[k * 16 + column]);
      }
      // 17 sums of numbers below 10: 17 * 10 * 2^-24.
      EXPECT_NEAR(operands.d[row * 16 + column], expected, 1e-5f) << row << ", " << column;
    }
  }
}

}  // namespace
}  // namespace conclave::cuda
