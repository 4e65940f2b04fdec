#include "kernels/packed_matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/fp8.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/quantize.h"

namespace conclave {
namespace {

constexpr size_t kHugePageBytes = 2 << 20;
constexpr size_t kLineBytes = 64;

size_t RoundUp(size_t value, size_t step) { return (value + step - 1) / step * step; }

// 2 MiB-aligned memory for which the kernel is asked to use huge pages: streaming weights through
// 4 KiB pages costs a TLB miss every 64 lines. The mapping ends where the data does, so a last
// part smaller than a huge page is not rounded up to one.
void* MapAligned(size_t bytes) {
  const size_t mapped = bytes + kHugePageBytes;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED) << "cannot map " << bytes << " bytes for a weight";
  char* const begin = static_cast<char*>(memory);
  const size_t head = RoundUp(reinterpret_cast<uintptr_t>(begin), kHugePageBytes) -
                      reinterpret_cast<uintptr_t>(begin);
  if (head > 0) munmap(begin, head);
  if (mapped - head > bytes) munmap(begin + head + bytes, mapped - head - bytes);
#if defined(MADV_HUGEPAGE)
  madvise(begin + head, bytes, MADV_HUGEPAGE);  // refused: slower, not wrong
#endif
  return begin + head;
}

// Bytes really allocated for a matrix: whole pages for a mapped one.
size_t AllocatedBytes(size_t bytes) {
  return RoundUp(bytes, bytes < kHugePageBytes ? kLineBytes : 4096);
}

// Where input k of a group and an output lie among the values of a block; see PackedMatrix.
int64_t Int8Offset(int64_t k, int lane) { return k / 4 * 64 + lane * 4 + k % 4; }
int64_t Int4Offset(int64_t k, int lane) { return k / 8 * 64 + lane * 4 + k % 4; }
int Int4Shift(int64_t k) { return k / 4 % 2 == 0 ? 0 : 4; }
int64_t Fp8Offset(int64_t k, int lane) { return k / 4 * 64 + (lane * 2 + k % 2) * 2 + k / 2 % 2; }

// Row `row` of the parts stacked, as (part, row of the part).
template <typename Part>
std::pair<const Part*, int64_t> FindRow(absl::Span<const Part> parts, int64_t row) {
  for (const Part& part : parts) {
    if (row < part.num_rows) return {&part, row};
    row -= part.num_rows;
  }
  return {nullptr, 0};
}

template <typename Part>
int64_t CountRows(absl::Span<const Part> parts) {
  int64_t rows = 0;
  for (const Part& part : parts) {
    CHECK(part.num_rows == 0 || part.data != nullptr) << "a part of " << part.num_rows << " rows";
    rows += part.num_rows;
  }
  return rows;
}

void ForPanels(int64_t num_panels, ThreadPool* pool,
               absl::FunctionRef<void(int64_t begin, int64_t end)> pack) {
  if (pool == nullptr) {
    pack(0, num_panels);
  } else {
    pool->ParallelFor(num_panels, /*grain=*/4, pack);
  }
}

// Writes one panel: line i holds inputs 2i and 2i + 1 of 16 outputs. Absent rows are zero.
void PackPanel(const BFloat16* const rows[PackedMatrix::kPanel], int64_t in_features,
               uint32_t* lines) {
  constexpr int kPanel = PackedMatrix::kPanel;
  const int64_t full_pairs = in_features / 2;
  // A line of each row is copied before it is dealt out: rows of 4 KiB, as in_features 2048 has,
  // all lie in one set of the first cache, which holds 8 or 12 lines, not 16.
  constexpr int64_t kPairs = 16;
  uint32_t block[kPanel][kPairs] = {};
  for (int64_t pair = 0; pair < full_pairs; pair += kPairs) {
    const int64_t count = std::min(kPairs, full_pairs - pair);
    for (int lane = 0; lane < kPanel; ++lane) {
      if (rows[lane] == nullptr) continue;
      std::memcpy(block[lane], rows[lane] + 2 * pair, count * sizeof(uint32_t));
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int lane = 0; lane < kPanel; ++lane) lines[(pair + i) * kPanel + lane] = block[lane][i];
    }
  }
  if (in_features % 2 == 0) return;
  for (int lane = 0; lane < kPanel; ++lane) {
    uint16_t value = 0;
    if (rows[lane] != nullptr) std::memcpy(&value, rows[lane] + in_features - 1, sizeof(value));
    lines[full_pairs * kPanel + lane] = value;
  }
}

// Four codes of a lane lie together in each layout: in a word that 16 lanes make a line of.
void StoreWord(uint32_t word, int lane, uint8_t* line) {
  std::memcpy(line + lane * sizeof(word), &word, sizeof(word));
}

uint32_t LoadWord(const void* from) {
  uint32_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// Writes one panel of int8 or int4 blocks. Absent rows have code 0 and scale 0.
void PackCodes(const BFloat16* const rows[PackedMatrix::kPanel], const PackedMatrix& matrix,
               uint8_t* panel) {
  const bool int8 = matrix.dtype() == WeightDtype::kInt8;
  const int64_t group = matrix.group_size(), in_features = matrix.in_features();
  const auto quantize = int8 ? cpu::OpsFor(DetectCpuIsa()).quantize_int8 : QuantizeInt4;
  std::vector<int8_t> codes(group);
  std::vector<BFloat16> values(group);  // aligned, which the source need not be
  for (int64_t begin = 0; begin < in_features; begin += group, panel += matrix.block_bytes()) {
    const int64_t size = std::min(group, in_features - begin);
    for (int lane = 0; lane < PackedMatrix::kPanel; ++lane) {
      float scale = 0;
      std::fill(codes.begin(), codes.end(), int8_t{0});
      if (rows[lane] != nullptr) {
        std::memcpy(values.data(), rows[lane] + begin, size * sizeof(BFloat16));
        quantize(values.data(), size, codes.data(), &scale);
      }
      std::memcpy(panel + lane * sizeof(float), &scale, sizeof(scale));
      uint8_t* line = panel + PackedMatrix::kScaleBytes;
      if (int8) {
        for (int64_t k = 0; k < group; k += 4, line += kLineBytes) {
          StoreWord(LoadWord(&codes[k]), lane, line);
        }
        continue;
      }
      for (int8_t& code : codes) code = static_cast<int8_t>(code + 8);
      for (int64_t k = 0; k < group; k += 8, line += kLineBytes) {
        StoreWord(LoadWord(&codes[k]) | LoadWord(&codes[k + 4]) << 4, lane, line);
      }
    }
  }
}

// Writes one lane of a panel of FP8 blocks.
void PackFp8Lane(const Fp8Rows& part, int64_t row, const PackedMatrix& matrix, int lane,
                 uint8_t* panel) {
  const int64_t group = matrix.group_size();
  const uint8_t* values = part.data + row * matrix.in_features();
  const float* const scales = part.scales + row / group * matrix.num_groups();
  std::vector<uint8_t> codes(group);
  for (int64_t block = 0; block < matrix.num_groups(); ++block, panel += matrix.block_bytes()) {
    std::memcpy(panel + lane * sizeof(float), scales + block, sizeof(float));
    const int64_t size = std::min(group, matrix.in_features() - block * group);
    std::memcpy(codes.data(), values + block * group, size);
    std::fill(codes.begin() + size, codes.end(), uint8_t{0});
    uint8_t* line = panel + PackedMatrix::kScaleBytes;
    for (int64_t k = 0; k < group; k += 4, line += kLineBytes) {
      StoreWord(codes[k] | codes[k + 2] << 8 | codes[k + 1] << 16 | uint32_t{codes[k + 3]} << 24,
                lane, line);
    }
  }
}

}  // namespace

void PackedMatrix::Unmapper::operator()(uint8_t* data) const {
  if (bytes < kHugePageBytes) {
    std::free(data);
  } else {
    munmap(data, bytes);
  }
}

PackedMatrix::PackedMatrix(WeightDtype dtype, int64_t out_features, int64_t in_features)
    : dtype_(dtype), out_features_(out_features), in_features_(in_features) {
  if (bytes() == 0) return;
  panel_bytes_ = static_cast<int64_t>(bytes()) / num_panels();
  const size_t allocated = AllocatedBytes(bytes());
  void* const memory = allocated < kHugePageBytes ? std::aligned_alloc(kLineBytes, allocated)
                                                  : MapAligned(allocated);
  CHECK(memory != nullptr) << "cannot allocate " << allocated << " bytes for a weight";
  data_ = std::unique_ptr<uint8_t[], Unmapper>(static_cast<uint8_t*>(memory), Unmapper{allocated});
}

PackedMatrix PackedMatrix::Pack(absl::Span<const MatrixRows> parts, int64_t in_features,
                                ThreadPool* pool, WeightDtype dtype) {
  CHECK(dtype != WeightDtype::kFp8) << "PackFp8 takes FP8";
  PackedMatrix matrix(dtype, CountRows(parts), in_features);
  if (matrix.bytes() == 0) return matrix;
  ForPanels(matrix.num_panels(), pool, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const BFloat16* rows[kPanel] = {};
      for (int lane = 0; lane < kPanel; ++lane) {
        const auto [part, row] = FindRow(parts, panel * kPanel + lane);
        if (part != nullptr) rows[lane] = part->data + row * in_features;
      }
      uint8_t* const to = matrix.data_.get() + panel * matrix.panel_bytes_;
      if (dtype == WeightDtype::kBf16) {
        PackPanel(rows, in_features, reinterpret_cast<uint32_t*>(to));
      } else {
        PackCodes(rows, matrix, to);
      }
    }
  });
  return matrix;
}

PackedMatrix PackedMatrix::PackFp8(absl::Span<const Fp8Rows> parts, int64_t in_features,
                                   ThreadPool* pool) {
  PackedMatrix matrix(WeightDtype::kFp8, CountRows(parts), in_features);
  if (matrix.bytes() == 0) return matrix;
  ForPanels(matrix.num_panels(), pool, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      uint8_t* const to = matrix.data_.get() + panel * matrix.panel_bytes_;
      std::memset(to, 0, matrix.panel_bytes_);
      for (int lane = 0; lane < kPanel; ++lane) {
        const auto [part, row] = FindRow(parts, panel * kPanel + lane);
        if (part != nullptr) PackFp8Lane(*part, row, matrix, lane, to);
      }
    }
  });
  return matrix;
}

BFloat16 PackedMatrix::At(int64_t out, int64_t in) const {
  const int lane = static_cast<int>(out % kPanel);
  if (dtype_ == WeightDtype::kBf16) {
    return Panel(out / kPanel)[(in / 2) * 2 * kPanel + lane * 2 + in % 2];
  }
  CHECK(dtype_ == WeightDtype::kFp8) << WeightDtypeName(dtype_);
  const int64_t k = in % group_size();
  return ToBFloat16(E4M3ToFloat(Block(out, in)[kScaleBytes + Fp8Offset(k, lane)]) *
                    Scale(out, in / group_size()));
}

int PackedMatrix::Code(int64_t out, int64_t in) const {
  const uint8_t* const lines = Block(out, in) + kScaleBytes;
  const int64_t k = in % group_size();
  const int lane = static_cast<int>(out % kPanel);
  if (dtype_ == WeightDtype::kInt8) return static_cast<int8_t>(lines[Int8Offset(k, lane)]);
  CHECK(dtype_ == WeightDtype::kInt4) << WeightDtypeName(dtype_);
  return ((lines[Int4Offset(k, lane)] >> Int4Shift(k)) & 15) - 8;
}

float PackedMatrix::Scale(int64_t out, int64_t group) const {
  float scale;
  std::memcpy(&scale, Block(out, group * group_size()) + out % kPanel * sizeof(float),
              sizeof(scale));
  return scale;
}

float PackedMatrix::Value(int64_t out, int64_t in) const {
  if (dtype_ == WeightDtype::kBf16 || dtype_ == WeightDtype::kFp8) return ToFloat(At(out, in));
  return static_cast<float>(Code(out, in)) * Scale(out, in / group_size());
}

}  // namespace conclave
