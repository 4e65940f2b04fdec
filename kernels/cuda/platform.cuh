#pragma once

// The CUDA that the kernels are written in: the toolkit's, or the emulator's on a CPU
// (-DCONCLAVE_CUDA_EMULATION, tests only). What is inline PTX on a device has its emulated twin
// beside it here, so that a kernel's source is the same for both.

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "common/bfloat16.h"
#include "kernels/cuda/runtime.h"

#if defined(CONCLAVE_CUDA_EMULATION)
#include "kernels/cuda/emulation/emulator.h"
#else
#include <cuda_runtime.h>
#endif

namespace conclave::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;
// What a thread block may ask for on sm_80; sm_90 has 227 KiB.
inline constexpr int kMaxSharedBytes = 163 * 1024;

#if !defined(CONCLAVE_CUDA_EMULATION)
// Lets `kernel` have that much dynamic shared memory; what the launch said, as a status.
absl::Status AllowSharedBytes(const char* name, const void* kernel, size_t shared_bytes);
absl::Status LaunchStatus(const char* name, cudaError_t error);
#endif

// The only place from which kernels are launched. Asynchronous on `stream`; arguments are copied
// now. An empty grid launches nothing. Errors: Internal naming the kernel.
template <typename... Params, typename... Args>
absl::Status Launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block,
                    size_t shared_bytes, const Stream& stream, Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return absl::OkStatus();
#if defined(CONCLAVE_CUDA_EMULATION)
  const bool programmatic = stream.programmatic();
  return stream.Enqueue([=] {
    emulation::RunGrid(
        name, grid, block, shared_bytes, [&] { kernel(args...); }, programmatic);
  });
#else
  const absl::Status allowed =
      AllowSharedBytes(name, reinterpret_cast<const void*>(kernel), shared_bytes);
  if (!allowed.ok()) return allowed;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.handle());
  cudaLaunchAttribute programmatic = {};
  programmatic.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  programmatic.val.programmaticStreamSerializationAllowed = 1;
  if (stream.programmatic()) {
    config.attrs = &programmatic;
    config.numAttrs = 1;
  }
  return LaunchStatus(name, cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
#endif
}

#if defined(CONCLAVE_CUDA_EMULATION)
#define CONCLAVE_DEVICE inline
#else
#define CONCLAVE_DEVICE __device__ __forceinline__
#endif

// The first statement of every kernel: on a stream with programmatic launches the kernel before may
// still run, and the one after is now free to be launched beside this one. Its threads wait here
// in their turn until this kernel has ended, so that whoever gets past has all before it behind it,
// and its memory. griddepcontrol is of sm_90; where no launch is programmatic it does nothing.
CONCLAVE_DEVICE void AwaitPrevious() {
#if defined(CONCLAVE_CUDA_EMULATION)
  emulation::NoteAwaited();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The thread block's dynamic shared memory, 128-byte aligned, `shared_bytes` of the launch.
CONCLAVE_DEVICE unsigned char* DynamicShared() {
#if defined(CONCLAVE_CUDA_EMULATION)
  return static_cast<unsigned char*>(emulation::dynamic_shared);
#else
  extern __shared__ __align__(128) unsigned char conclave_dynamic_shared[];
  return conclave_dynamic_shared;
#endif
}

CONCLAVE_DEVICE float Widen(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
CONCLAVE_DEVICE float WidenLow(uint32_t pair) { return __uint_as_float(pair << 16); }
CONCLAVE_DEVICE float WidenHigh(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// To nearest, ties to even, as ToBFloat16.
CONCLAVE_DEVICE BFloat16 Round(float value) {
#if defined(CONCLAVE_CUDA_EMULATION)
  return ToBFloat16(value);
#else
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#endif
}
// `low` in the lower half, as it lies first in memory.
CONCLAVE_DEVICE uint32_t RoundPair(float low, float high) {
#if defined(CONCLAVE_CUDA_EMULATION)
  return ToBFloat16(low).bits | static_cast<uint32_t>(ToBFloat16(high).bits) << 16;
#else
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
#endif
}

// To E4M3: to nearest, ties to even; what is larger than 448 becomes it, NaN stays NaN.
CONCLAVE_DEVICE uint32_t RoundFp8(float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t sign = bits >> 24 & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7fu;
  if (magnitude >= 0x43e00000u) return sign | 0x7eu;  // 448
  // Below 2^-6 in steps of 2^-9, which are 2^14's last bit: the sum is rounded to them.
  if (magnitude < 0x3c800000u) {
    return sign | (__float_as_uint(__fadd_rn(__uint_as_float(magnitude), 0x1p14f)) & 0xfu);
  }
  // Three bits of the mantissa stay, the exponent's bias falls by 120.
  const uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
  return sign | ((rounded >> 20) - (120u << 3));
}
// `low` in the lower byte.
CONCLAVE_DEVICE uint32_t RoundFp8Pair(float low, float high) {
#if !defined(CONCLAVE_CUDA_EMULATION) && __CUDA_ARCH__ >= 890
  uint16_t result;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(result) : "f"(high), "f"(low));
  return result;
#else
  return RoundFp8(low) | RoundFp8(high) << 8;
#endif
}

// Two neighbouring values at once; `to` is 4-byte aligned.
CONCLAVE_DEVICE void StorePair(BFloat16* to, uint32_t pair) {
#if defined(CONCLAVE_CUDA_EMULATION)
  to[0].bits = static_cast<uint16_t>(pair);
  to[1].bits = static_cast<uint16_t>(pair >> 16);
#else
  *reinterpret_cast<uint32_t*>(to) = pair;
#endif
}

// 2^x, to 2 ulp on a device.
CONCLAVE_DEVICE float Exp2(float x) {
#if defined(CONCLAVE_CUDA_EMULATION)
  return std::exp2(x);
#else
  return exp2f(x);
#endif
}

// d += a b: mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32. Of lane = 4 g + t (PTX ISA,
// "Matrix Fragments for mma.m16n8k16"):
//   a[0] (row g, k 2t..2t+1), a[1] (row g + 8), a[2] (row g, k 2t+8..2t+9), a[3] (row g + 8, same);
//   b[0] (k 2t..2t+1, column g), b[1] (k 2t+8..2t+9); d[0..1] (row g, columns 2t..2t+1), d[2..3]
//   (row g + 8). The sum over k is in an order of the device's own, the same for every row.
CONCLAVE_DEVICE void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(CONCLAVE_CUDA_EMULATION)
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned char* const slots =
      emulation::ExchangeInWarp(mine, sizeof(mine), __builtin_FILE(), __builtin_LINE());
  const auto word = [slots](unsigned lane, unsigned index) {
    uint32_t value;
    std::memcpy(&value, slots + lane * 64 + index * 4, 4);
    return value;
  };
  const unsigned g = emulation::current->lane / 4, t = emulation::current->lane % 4;
  for (unsigned half = 0; half < 2; ++half) {  // of the rows
    for (unsigned column = 0; column < 2; ++column) {
      float sum = 0;
      for (unsigned k = 0; k < 16; k += 2) {
        const unsigned lane_k = k % 8 / 2, high_k = k / 8;
        const uint32_t pair_a = word(g * 4 + lane_k, half + 2 * high_k);
        const uint32_t pair_b = word((2 * t + column) * 4 + lane_k, 4 + high_k);
        sum += WidenLow(pair_a) * WidenLow(pair_b);
        sum += WidenHigh(pair_a) * WidenHigh(pair_b);
      }
      d[2 * half + column] += sum;
    }
  }
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

#if !defined(CONCLAVE_CUDA_EMULATION)
CONCLAVE_DEVICE uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

// ldmatrix.sync.aligned.m8n8.x4.shared.b16: four 8 x 8 matrices; lane i hands in row i % 8 of
// matrix i / 8 (16 bytes, 16-byte aligned); lane 4 g + t gets (row g, columns 2t..2t+1) of each, in
// the transposed form (rows 2t..2t+1, column g).
template <bool kTransposed>
CONCLAVE_DEVICE void LoadMatrices(uint32_t (&out)[4], const void* row) {
#if defined(CONCLAVE_CUDA_EMULATION)
  const auto address = reinterpret_cast<uintptr_t>(row);
  const unsigned char* const slots =
      emulation::ExchangeInWarp(&address, sizeof(address), __builtin_FILE(), __builtin_LINE());
  const unsigned g = emulation::current->lane / 4, t = emulation::current->lane % 4;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    const auto element = [&](unsigned r, unsigned c) -> uint32_t {
      const auto from = emulation::FromLane<uintptr_t>(slots, matrix * 8 + r);
      return reinterpret_cast<const BFloat16*>(from)[c].bits;
    };
    out[matrix] = kTransposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                              : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
  }
#else
  const uint32_t address = SharedAddress(row);
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  }
#endif
}

// cp.async of 16 aligned bytes from global to shared memory; zeros if not `wanted` (`global` is not
// read then, but must be a valid address).
CONCLAVE_DEVICE void CopyAsync16(void* shared, const void* global, bool wanted) {
#if defined(CONCLAVE_CUDA_EMULATION)
  emulation::CopyAsync(shared, global, 16, !wanted);
#else
  const int source_bytes = wanted ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(source_bytes)
               : "memory");
#endif
}
CONCLAVE_DEVICE void CommitCopies() {
#if defined(CONCLAVE_CUDA_EMULATION)
  emulation::CommitCopies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most `kInFlight` of this thread's groups are unfinished. A barrier must follow before
// another thread's copies are read.
template <int kInFlight>
CONCLAVE_DEVICE void WaitForCopies() {
#if defined(CONCLAVE_CUDA_EMULATION)
  emulation::WaitForCopies(kInFlight);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kInFlight) : "memory");
#endif
}

// A weight, which is read once: leave the caches to what is read again.
CONCLAVE_DEVICE uint4 LoadStreaming(const void* address) {
#if defined(CONCLAVE_CUDA_EMULATION)
  return *static_cast<const uint4*>(address);
#else
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(address));
  return value;
#endif
}
CONCLAVE_DEVICE uint2 LoadStreaming8(const void* address) {
#if defined(CONCLAVE_CUDA_EMULATION)
  return *static_cast<const uint2*>(address);
#else
  uint2 value;
  asm("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
      : "=r"(value.x), "=r"(value.y)
      : "l"(address));
  return value;
#endif
}

// Over the lanes of a warp, in one order; every lane gets the result.
CONCLAVE_DEVICE float WarpSum(float value) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, lanes);
  }
  return value;
}
CONCLAVE_DEVICE float WarpMax(float value) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, lanes));
  }
  return value;
}
CONCLAVE_DEVICE int WarpSumInt(int value) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, lanes);
  }
  return value;
}

}  // namespace conclave::cuda
