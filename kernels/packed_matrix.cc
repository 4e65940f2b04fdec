#include "kernels/packed_matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "common/check.h"

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

// Writes one panel: line i holds inputs 2i and 2i + 1 of 16 outputs. Absent rows are zero.
void PackPanel(const BFloat16* const rows[PackedMatrix::kPanel], int64_t in_features,
               uint32_t* lines) {
  constexpr int kPanel = PackedMatrix::kPanel;
  const int64_t full_pairs = in_features / 2;
  for (int64_t pair = 0; pair < full_pairs; ++pair) {
    for (int lane = 0; lane < kPanel; ++lane) {
      uint32_t value = 0;
      if (rows[lane] != nullptr) std::memcpy(&value, rows[lane] + 2 * pair, sizeof(value));
      lines[pair * kPanel + lane] = value;
    }
  }
  if (in_features % 2 == 0) return;
  for (int lane = 0; lane < kPanel; ++lane) {
    uint16_t value = 0;
    if (rows[lane] != nullptr) std::memcpy(&value, rows[lane] + in_features - 1, sizeof(value));
    lines[full_pairs * kPanel + lane] = value;
  }
}

}  // namespace

void PackedMatrix::Unmapper::operator()(BFloat16* data) const {
  if (bytes < kHugePageBytes) {
    std::free(data);
  } else {
    munmap(data, bytes);
  }
}

PackedMatrix PackedMatrix::Pack(absl::Span<const MatrixRows> parts, int64_t in_features,
                                ThreadPool* pool) {
  PackedMatrix matrix;
  matrix.in_features_ = in_features;
  for (const MatrixRows& part : parts) {
    CHECK(part.num_rows == 0 || part.data != nullptr) << "a part of " << part.num_rows << " rows";
    matrix.out_features_ += part.num_rows;
  }
  if (matrix.bytes() == 0) return matrix;

  const size_t bytes = AllocatedBytes(matrix.bytes());
  void* const memory =
      bytes < kHugePageBytes ? std::aligned_alloc(kLineBytes, bytes) : MapAligned(bytes);
  CHECK(memory != nullptr) << "cannot allocate " << bytes << " bytes for a weight";
  matrix.data_ =
      std::unique_ptr<BFloat16[], Unmapper>(static_cast<BFloat16*>(memory), Unmapper{bytes});

  auto pack = [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const BFloat16* rows[kPanel] = {};
      for (int lane = 0; lane < kPanel; ++lane) {
        int64_t row = panel * kPanel + lane;
        for (const MatrixRows& part : parts) {
          if (row < part.num_rows) {
            rows[lane] = part.data + row * in_features;
            break;
          }
          row -= part.num_rows;
        }
      }
      PackPanel(rows, in_features,
                static_cast<uint32_t*>(memory) + panel * matrix.num_pairs() * kPanel);
    }
  };
  if (pool == nullptr) {
    pack(0, matrix.num_panels());
  } else {
    pool->ParallelFor(matrix.num_panels(), /*grain=*/4, pack);
  }
  return matrix;
}

}  // namespace conclave
