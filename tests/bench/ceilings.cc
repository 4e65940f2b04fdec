#include "tests/bench/ceilings.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace conclave {
namespace {

// Keeps a result from being optimised away.
std::atomic<double> sink{0};

// Where the chains of a burn start: unknown to the compiler, which would merge equal ones.
volatile float start_value = 0;

// Floats that one thread reads at a time, 1 MiB: as four streams, each asked for 1 KiB ahead, which
// is how the matrix kernels read weights and more than one stream without asking gives.
constexpr int64_t kChunk = 1 << 18;
constexpr int64_t kStream = kChunk / 4;
constexpr int64_t kAhead = 256;

// SumX adds up kChunk floats. Each burn does 24 independent chains, more than the
// latency times the throughput of any current core, and returns what it computed.
using Float4 = float __attribute__((vector_size(16)));

double SumPlain(const float* from) {
  Float4 sums[4] = {};
  for (int64_t i = 0; i < kStream; i += 16) {
    for (int j = 0; j < 4; ++j) {
      const float* const line = from + j * kStream + i;
      __builtin_prefetch(line + kAhead);
      for (int k = 0; k < 16; k += 4) sums[j] += *reinterpret_cast<const Float4*>(line + k);
    }
  }
  const Float4 sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return sum[0] + sum[1] + sum[2] + sum[3];
}

constexpr int kChains = 24;

double BurnPlain(int64_t rounds) {
  Float4 sums[kChains / 2];  // 12 of 16 registers
  for (Float4& sum : sums) sum = Float4{} + start_value;
  const Float4 a = {1, 1, 1, 1}, b = {1e-30f, 1e-30f, 1e-30f, 1e-30f};
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (Float4& sum : sums) sum = sum * a + b;
  }
  float total = 0;
  for (const Float4& sum : sums) total += sum[0];
  return total;
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) double SumAvx2(const float* from) {
  __m256 sums[8] = {};
  for (int64_t i = 0; i < kStream; i += 16) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const float* const line = from + j * kStream + i;
      __builtin_prefetch(line + kAhead);
      sums[j] = _mm256_add_ps(sums[j], _mm256_loadu_ps(line));
      sums[4 + j] = _mm256_add_ps(sums[4 + j], _mm256_loadu_ps(line + 8));
    }
  }
  __m256 total = sums[0];
  for (int j = 1; j < 8; ++j) total = _mm256_add_ps(total, sums[j]);
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, total);
  return lanes[0];
}

__attribute__((target("avx2,fma"))) double BurnAvx2(int64_t rounds) {
  __m256 sums[kChains / 2];
  for (__m256& sum : sums) sum = _mm256_set1_ps(start_value);
  const __m256 a = _mm256_set1_ps(1), b = _mm256_set1_ps(1e-30f);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains / 2; ++j) sums[j] = _mm256_fmadd_ps(a, b, sums[j]);
  }
  __m256 total = sums[0];
  for (int j = 1; j < kChains / 2; ++j) total = _mm256_add_ps(total, sums[j]);
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, total);
  return lanes[0];
}

__attribute__((target("avx512f"))) double SumAvx512(const float* from) {
  __m512 sums[4] = {};
  for (int64_t i = 0; i < kStream; i += 16) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const float* const line = from + j * kStream + i;
      __builtin_prefetch(line + kAhead);
      sums[j] = _mm512_add_ps(sums[j], _mm512_loadu_ps(line));
    }
  }
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes,
                  _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
  return lanes[0];
}

__attribute__((target("avx512f"))) double BurnAvx512(int64_t rounds) {
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_set1_ps(start_value);
  const __m512 a = _mm512_set1_ps(1), b = _mm512_set1_ps(1e-30f);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_fmadd_ps(a, b, sums[j]);
  }
  __m512 total = sums[0];
  for (int j = 1; j < kChains; ++j) total = _mm512_add_ps(total, sums[j]);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, total);
  return lanes[0];
}

__attribute__((target("avx512f,avx512bf16"))) double BurnBf16(int64_t rounds) {
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_set1_ps(start_value);
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_set1_epi16(0x0080);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_dpbf16_ps(sums[j], a, b);
  }
  __m512 total = sums[0];
  for (int j = 1; j < kChains; ++j) total = _mm512_add_ps(total, sums[j]);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, total);
  return lanes[0];
}

__attribute__((target("avx2"))) double BurnInt8Avx2(int64_t rounds) {
  __m256i sums[kChains / 3];
  for (__m256i& sum : sums) sum = _mm256_set1_epi32(static_cast<int>(start_value));
  const __m256i a = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 8
    for (__m256i& sum : sums) {
      const __m256i pairs = _mm256_maddubs_epi16(a, sum);  // of the sum: not a constant
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
  }
  __m256i total = sums[0];
  for (int j = 1; j < kChains / 3; ++j) total = _mm256_add_epi32(total, sums[j]);
  return _mm256_extract_epi32(total, 0);
}

__attribute__((target("avx512f,avx512vnni"))) double BurnInt8Vnni(int64_t rounds) {
  __m512i sums[kChains];
  for (__m512i& sum : sums) sum = _mm512_set1_epi32(static_cast<int>(start_value));
  const __m512i a = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_dpbusd_epi32(sums[j], a, a);
  }
  __m512i total = sums[0];
  for (int j = 1; j < kChains; ++j) total = _mm512_add_epi32(total, sums[j]);
  alignas(64) int32_t lanes[16];
  _mm512_store_si512(lanes, total);
  return lanes[0];
}

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kTileConfig;
constexpr int kTileChains = 4;  // 4 x 16 cycles are more than the latency of 52

// Rounds of 4 tile products on tiles of zeros.
__attribute__((target("amx-tile,amx-bf16"))) double BurnBf16Amx(int64_t rounds) {
  _tile_loadconfig(&kTileConfig);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 0;
}

__attribute__((target("amx-tile,amx-int8"))) double BurnInt8Amx(int64_t rounds) {
  _tile_loadconfig(&kTileConfig);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
  return 0;
}
#endif

}  // namespace

Ceilings::Ceilings(const Device& device, size_t buffer_bytes, double (*clock)())
    : device_(device),
      clock_(clock),
      size_(static_cast<int64_t>(buffer_bytes / sizeof(float)) / kChunk * kChunk),
      buffer_(static_cast<float*>(std::aligned_alloc(2 << 20, size_ * sizeof(float)))) {
#if defined(MADV_HUGEPAGE)
  madvise(buffer_.get(), size_ * sizeof(float), MADV_HUGEPAGE);  // as the weights
#endif
  for (int64_t i = 0; i < size_; ++i) buffer_.get()[i] = static_cast<float>(i % 7);
}

double Ceilings::ReadBytesPerSecond() {
  double (*sum)(const float*) = SumPlain;
#if defined(__x86_64__)
  if (device_.isa >= CpuIsa::kAvx2) sum = SumAvx2;
  if (device_.isa >= CpuIsa::kAvx512) sum = SumAvx512;
#endif
  const double start = clock_();
  device_.pool->ParallelFor(size_ / kChunk, 1, [&](int64_t begin, int64_t end) {
    double total = 0;
    for (int64_t i = begin; i < end; ++i) {
      total += sum(buffer_.get() + i * kChunk);
    }
    sink = total;
  });
  return static_cast<double>(size_) * sizeof(float) / (clock_() - start);
}

double Ceilings::FlopsPerSecond(double (*burn)(int64_t), double flops_per_round) {
  constexpr int64_t kRounds = 20'000;
  const int64_t count = 8 * device_.pool->num_threads();
  const double start = clock_();
  device_.pool->ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sink = burn(kRounds);
  });
  return static_cast<double>(count * kRounds) * flops_per_round / (clock_() - start);
}

double Ceilings::Fp32FlopsPerSecond() {
#if defined(__x86_64__)
  if (device_.isa >= CpuIsa::kAvx512) return FlopsPerSecond(BurnAvx512, kChains * 16 * 2);
  if (device_.isa >= CpuIsa::kAvx2) return FlopsPerSecond(BurnAvx2, kChains / 2 * 8 * 2);
#endif
  return FlopsPerSecond(BurnPlain, kChains / 2 * 4 * 2);
}

double Ceilings::Bf16FlopsPerSecond() {
#if defined(__x86_64__)
  constexpr double kTileFlops = 2.0 * 16 * 16 * 32;
  if (device_.isa == CpuIsa::kAmx) return FlopsPerSecond(BurnBf16Amx, kTileChains * kTileFlops);
  if (device_.isa >= CpuIsa::kAvx512Bf16) return FlopsPerSecond(BurnBf16, kChains * 16 * 4);
#endif
  return Fp32FlopsPerSecond();
}

double Ceilings::Int8OpsPerSecond() {
#if defined(__x86_64__)
  constexpr double kTileOps = 2.0 * 16 * 16 * 64;
  if (device_.isa == CpuIsa::kAmx) return FlopsPerSecond(BurnInt8Amx, kTileChains * kTileOps);
  if (device_.isa >= CpuIsa::kAvx512Bf16) return FlopsPerSecond(BurnInt8Vnni, kChains * 64 * 2);
  if (device_.isa >= CpuIsa::kAvx2) return FlopsPerSecond(BurnInt8Avx2, kChains / 3 * 32 * 2);
#endif
  return Fp32FlopsPerSecond();
}

}  // namespace conclave
