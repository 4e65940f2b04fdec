#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

// What the kernels in kernels/cuda use of CUDA C++, for a CPU compiler: the same sources become
// plain functions, each thread of a thread block a fiber, thread blocks run one after another. For
// tests: it finds wrong logic, wrong fragment layouts, missing barriers and (under
// AddressSanitizer) accesses out of bounds; it says nothing about speed or about a real device's
// memory ordering. Included by kernels/cuda/platform.cuh alone.

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Thread blocks run one after another, so that they can share one array.
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  // Implicit as in CUDA, where a launch takes plain numbers.
  dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1)
      : x(x_size), y(y_size), z(z_size) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace conclave::cuda::emulation {

// The thread that runs now.
struct ThreadState {
  dim3 thread_idx, block_idx, block_dim, grid_dim;
  unsigned lane = 0;
  mutable bool has_awaited = false;
};
extern const ThreadState* current;
extern void* dynamic_shared;

// A kernel's shared memory holds this byte until it is written: all-ones floats are NaN.
inline constexpr int kPoison = 0xff;

// Runs `body` once for each thread of each thread block. Aborts, naming the kernel, where a device
// would hang or misbehave: threads of a thread block that wait at different barriers, or for
// threads that have left; a thread block that is no whole number of warps; with must_await a thread
// that never calls AwaitPrevious. Any thread; one grid at a time.
void RunGrid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
             const std::function<void()>& body, bool must_await = false);

inline void NoteAwaited() { current->has_awaited = true; }

// Runs `work` in its turn on the stream that has this handle, or records it: for a library that is
// given a stream.
void Enqueue(void* stream, std::function<void()> work);

// From now on every call of the stand-in runtime that enqueues, records or waits fails, as all do
// after a device's error that sticks; until told otherwise. Any thread, also a signal handler.
void FailCalls(bool fail);

// Every lane of the warp hands in `bytes` (at most 64) and sees what all 32 handed in: [32][64].
const unsigned char* ExchangeInWarp(const void* value, size_t bytes, const char* file, int line);
void WaitForBlock(const char* file, int line);

// cp.async. In every other thread block the copy happens when it is issued, in the others not
// before it is waited for: a kernel that reads too early, or overwrites too early, fails in one.
void CopyAsync(void* shared, const void* global, size_t bytes, bool zero_fill);
void CommitCopies();
void WaitForCopies(int groups_in_flight);

// wgmma: `multiply` is one thread's part of a product. As with CopyAsync, done when it is issued or
// not before it is waited for, by the thread block; aborts if the thread's own copies, which it may
// read, were not fenced, or at the end were never waited for.
void IssueMatrix(std::function<void()> multiply);
void CommitMatrices();
void WaitForMatrices(int groups_in_flight);
void FenceTiles();
// Aborts, naming the kernel, unless it holds.
void Expect(bool condition, const char* what);

template <typename T>
T FromLane(const unsigned char* slots, unsigned lane) {
  T value;
  std::memcpy(&value, slots + size_t{lane} * 64, sizeof(T));
  return value;
}

}  // namespace conclave::cuda::emulation

#define threadIdx (::conclave::cuda::emulation::current->thread_idx)
#define blockIdx (::conclave::cuda::emulation::current->block_idx)
#define blockDim (::conclave::cuda::emulation::current->block_dim)
#define gridDim (::conclave::cuda::emulation::current->grid_dim)

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  conclave::cuda::emulation::WaitForBlock(file, line);
}
inline void __syncwarp(unsigned = ~0u, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  const char nothing = 0;
  conclave::cuda::emulation::ExchangeInWarp(&nothing, 1, file, line);
}

template <typename T>
T __shfl_sync(unsigned, T value, int source, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
  return conclave::cuda::emulation::FromLane<T>(
      conclave::cuda::emulation::ExchangeInWarp(&value, sizeof(T), file, line),
      static_cast<unsigned>(source) % 32);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int lanes, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  return conclave::cuda::emulation::FromLane<T>(
      conclave::cuda::emulation::ExchangeInWarp(&value, sizeof(T), file, line),
      conclave::cuda::emulation::current->lane ^ static_cast<unsigned>(lanes));
}
// Lanes below `delta` keep their own value.
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  const unsigned lane = conclave::cuda::emulation::current->lane;
  return conclave::cuda::emulation::FromLane<T>(
      conclave::cuda::emulation::ExchangeInWarp(&value, sizeof(T), file, line),
      lane >= delta ? lane - delta : lane);
}
inline unsigned __ballot_sync(unsigned, int predicate, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  const unsigned char* const slots =
      conclave::cuda::emulation::ExchangeInWarp(&predicate, sizeof(predicate), file, line);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    votes |= unsigned{conclave::cuda::emulation::FromLane<int>(slots, lane) != 0} << lane;
  }
  return votes;
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
// Fibers give up the processor at barriers alone, so that plain arithmetic is atomic.
template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T before = *address;
  *address = std::max(before, value);
  return before;
}

inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline int __popc(unsigned value) { return std::popcount(value); }
inline int __ffs(unsigned value) { return value == 0 ? 0 : std::countr_zero(value) + 1; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
