#pragma once

#include <algorithm>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "common/aligned_vector.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/packed_matrix.h"

namespace conclave::cpu {

// Consecutive rows that one matrix multiplies.
struct RowRun {
  int64_t first = 0;
  int64_t count = 0;
};

struct InputSource {
  const BFloat16* values = nullptr;  // [num_values, in_features]
  int64_t num_values = 0;
  int64_t in_features = 0;
  absl::Span<const uint32_t> rows = {};  // row of `values` of each row; empty: the same
  absl::Span<const RowRun> runs = {};    // cover the rows in order
};

// Rows as the products of an instruction set and a dtype of weights want them: as they are,
// quantized, or in AMX tiles. Reused from call to call, it allocates only while it grows.
class InputRows {
 public:
  // Quantizes and copies what has to be, in parallel. `source` is used until the next call.
  void Prepare(const Device& device, WeightDtype dtype, const InputSource& source);

  const BFloat16* Values(int64_t row) const {
    return source_.values + ValueRow(row) * source_.in_features;
  }
  const int8_t* Codes(int64_t row) const { return codes_.data() + ValueRow(row) * padded_size_; }
  const float* Scales(int64_t row) const { return scales_.data() + ValueRow(row) * num_groups_; }

  // AMX: the tile that begins with `row`, which is a multiple of 16 rows from the start of its run;
  // see AmxBlock.
  const uint8_t* Tile(int64_t row) const { return tiles_.data() + row * tile_row_bytes_; }
  int64_t tile_row_bytes() const { return tile_row_bytes_; }

 private:
  int64_t ValueRow(int64_t row) const { return source_.rows.empty() ? row : source_.rows[row]; }
  void Quantize(const Device& device);
  void PackTiles(const Device& device, bool quantized);
  void PackTile(const RowRun& tile, bool quantized);

  InputSource source_;
  int64_t group_size_ = 0;
  int64_t num_groups_ = 0;
  int64_t padded_size_ = 0;         // codes of a row: whole groups
  std::vector<int8_t> codes_;       // [num_values][padded_size]
  std::vector<float> scales_;       // [num_values][num_groups]
  int64_t tile_row_bytes_ = 0;      // whole steps
  std::vector<RowRun> tile_spans_;  // of 1 .. 16 rows
  AlignedVector<uint8_t> tiles_;    // [rows][tile_row_bytes], and what reading a whole tile needs
};

// Receives the finished sums of one row, [16 * num_panels].
using EmitRow = absl::FunctionRef<void(int64_t row, const float* sums)>;

// Sums of rows [begin, end) of one run with up to kMaxTilePanels panels of the matrix, by index;
// `begin` is a multiple of 16 rows from the start of the run. Walks the rows in tiles, so that the
// panels, once read, stay in the second-level cache.
void PanelSums(const CpuOps& ops, const PackedMatrix& weight, absl::Span<const int64_t> panels,
               const InputRows& input, int64_t begin, int64_t end, EmitRow emit);

// Panels that one thread takes at a time: 4, or fewer where that would leave threads idle.
inline int PanelsPerItem(int64_t num_panels, int num_threads) {
  int panels = kMaxTilePanels;
  while (panels > 1 && num_panels < int64_t{2} * panels * num_threads) panels /= 2;
  return panels;
}

// Time of a product on one core, to decide whether threads are worth waking: 10 GB/s of weights or
// 100 GFLOP/s, whichever is slower.
inline double LinearNanoseconds(int64_t num_rows, size_t weight_bytes) {
  return std::max(static_cast<double>(weight_bytes) / 10,
                  static_cast<double>(num_rows) * static_cast<double>(weight_bytes) / 100);
}

}  // namespace conclave::cpu
