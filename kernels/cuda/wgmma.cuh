#pragma once

#include "kernels/cuda/platform.cuh"

// Hopper's products of a warpgroup (four warps in a row), sm_90a alone, and their emulated twins.
// Both operands lie in shared memory as tiles of rows of 64 BF16, K along the row: 128 bytes, in
// groups of 8 rows that are 1,024-byte aligned, with the 128-byte swizzle, in which the eight
// pieces of 16 bytes of a row lie in an order of the row's own, so that eight rows read at once
// meet in no bank. Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
namespace conclave::cuda {

inline constexpr int kTileRowBytes = 128;
inline constexpr int kTileAlignment = 1024;  // of 8 rows, after which the swizzle begins anew
// What a thread block may ask for on sm_90.
inline constexpr int kMaxSharedBytesHopper = 227 * 1024;

#if defined(CONCLAVE_CUDA_EMULATION)
// Addresses of shared memory begin where no kernel may count on their alignment.
inline constexpr uint32_t kEmulatedSharedBase = 1024 + 128;
inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) -
                               static_cast<const char*>(emulation::dynamic_shared)) +
         kEmulatedSharedBase;
}
#endif

// Of 16-byte piece `piece` of row `row` in a tile, in bytes.
CONCLAVE_DEVICE int TileOffset(int row, int piece) {
  return row * kTileRowBytes + (piece ^ row % 8) * 16;
}

// A tile that begins at `address` or, for later k, so many bytes further in its first row; both
// before the swizzle, which the hardware applies to bits of the address.
CONCLAVE_DEVICE uint64_t TileDescriptor(uint32_t address) {
  constexpr uint64_t kStride = kTileAlignment >> 4;  // from 8 rows to the next 8
  constexpr uint64_t kUnused = 1;  // the other stride, of swizzled tiles with K inside
  constexpr uint64_t kSwizzle128 = 1;
  return uint64_t{(address & 0x3ffffu) >> 4} | kUnused << 16 | kStride << 32 | kSwizzle128 << 62;
}

#if defined(CONCLAVE_CUDA_EMULATION)
inline float EmulatedTileValue(uint64_t descriptor, unsigned row, unsigned k) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fffu) << 4;
  const uint32_t stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fffu) << 4;
  const uint32_t plain = start + row / 8 * stride + row % 8 * kTileRowBytes + k * 2;
  const uint32_t address = plain ^ (plain >> 7 & 7u) << 4;
  BFloat16 value;
  std::memcpy(&value,
              static_cast<const char*>(emulation::dynamic_shared) + (address - kEmulatedSharedBase),
              sizeof(value));
  return Widen(value);
}
#endif

// d += a b over 16 k, a of 64 rows, b of 128, for the four warps of a warpgroup together: d's row
// is a's, its column b's row. Of warp w's lane 4 g + t, d[4 j + 2 h + i] is (row 16 w + 8 h + g,
// column 8 j + 2 t + i). The registers and the tiles are in use until the group it is committed to
// has been waited for.
CONCLAVE_DEVICE void MmaAsync(float (&d)[64], uint64_t a, uint64_t b) {
#if defined(CONCLAVE_CUDA_EMULATION)
  const uint64_t mine[2] = {a, b};
  const unsigned char* const slots =
      emulation::ExchangeInWarp(mine, sizeof(mine), __builtin_FILE(), __builtin_LINE());
  const auto first = emulation::FromLane<uint64_t>(slots, 0);
  emulation::Expect(first == a && (a >> 62) == 1 && (b >> 62) == 1,
                    "a warp's lanes name one tile, swizzled by 128 bytes");
  const unsigned g = emulation::current->lane / 4, t = emulation::current->lane % 4;
  const unsigned warp = emulation::current->thread_idx.x / kWarpSize % 4;
  emulation::IssueMatrix([&d, a, b, g, t, warp] {
    for (unsigned half = 0; half < 2; ++half) {
      float row[16];
      for (unsigned k = 0; k < 16; ++k) row[k] = EmulatedTileValue(a, warp * 16 + half * 8 + g, k);
      for (unsigned j = 0; j < 16; ++j) {
        for (unsigned i = 0; i < 2; ++i) {
          float sum = 0;
          for (unsigned k = 0; k < 16; ++k)
            sum += row[k] * EmulatedTileValue(b, j * 8 + 2 * t + i, k);
          d[4 * j + 2 * half + i] += sum;
        }
      }
    }
  });
#else
  asm volatile(
      "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,"
      "%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,"
      "%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,"
      "%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,"
      "%56,%57,%58,%59,%60,%61,%62,%63}, "
      "%64, %65, accumulate, 1, 1, 0, 0;\n}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
      : "l"(a), "l"(b));
#endif
}

// Between what uses `d` as numbers and a fence before products, or the wait after them: the
// compiler moves nothing across.
CONCLAVE_DEVICE void PinRegisters([[maybe_unused]] float (&d)[64]) {
#if !defined(CONCLAVE_CUDA_EMULATION)
  asm volatile(""
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
                 "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),
                 "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
                 "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
                 "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
                 "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),
                 "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),
                 "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
                 "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),
                 "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]),
                 "+f"(d[61]), "+f"(d[62]), "+f"(d[63])::"memory");
#endif
}

// Before the first MmaAsync after registers of `d` were written otherwise.
CONCLAVE_DEVICE void FenceMatrixRegisters() {
#if !defined(CONCLAVE_CUDA_EMULATION)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
CONCLAVE_DEVICE void CommitMatrices() {
#if defined(CONCLAVE_CUDA_EMULATION)
  emulation::CommitMatrices();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until at most `kInFlight` of the warpgroup's groups are unfinished.
template <int kInFlight>
CONCLAVE_DEVICE void WaitForMatrices() {
#if defined(CONCLAVE_CUDA_EMULATION)
  emulation::WaitForMatrices(kInFlight);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kInFlight) : "memory");
#endif
}
// Tiles are read past the way by which threads, and cp.async, write shared memory: by whoever
// wrote, after its copies have been waited for and before the barrier that tells others.
CONCLAVE_DEVICE void FenceTiles() {
#if defined(CONCLAVE_CUDA_EMULATION)
  emulation::FenceTiles();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace conclave::cuda
