#pragma once

#include <algorithm>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/packed_matrix.h"

namespace conclave::cpu {

// Rows of BF16 as the matrices of one dtype want them: as they are, or quantized. Reused from call
// to call, it allocates only while it grows.
class InputRows {
 public:
  // values: [num_rows, in_features], kept by the caller while this is used. Quantizes in parallel.
  void Prepare(const Device& device, WeightDtype dtype, const BFloat16* values, int64_t num_rows,
               int64_t in_features);

  const BFloat16* Row(int64_t row) const { return values_ + row * in_features_; }
  const int8_t* Codes(int64_t row) const { return codes_.data() + row * num_groups_ * group_size_; }
  const float* Scales(int64_t row) const { return scales_.data() + row * num_groups_; }
  const int32_t* Starts(int64_t row) const { return starts_.data() + row * num_groups_; }

 private:
  const BFloat16* values_ = nullptr;
  int64_t in_features_ = 0;
  int64_t group_size_ = 0;  // 0: not quantized
  int64_t num_groups_ = 0;
  std::vector<int8_t> codes_;    // [num_rows][num_groups][group_size]
  std::vector<float> scales_;    // [num_rows][num_groups]
  std::vector<int32_t> starts_;  // [num_rows][num_groups]: see Int8Tile
};

// Gives the index of an input row; receives the finished sums of one, [16 * num_panels].
using RowAt = absl::FunctionRef<int64_t(int64_t row)>;
using EmitRow = absl::FunctionRef<void(int64_t row, const float* sums)>;

// Sums of rows [begin, end) with up to kMaxTilePanels panels of the matrix, by index. Walks the
// rows in tiles, so that the panels, once read, stay in the second-level cache.
void PanelSums(const CpuOps& ops, const PackedMatrix& weight, absl::Span<const int64_t> panels,
               const InputRows& input, int64_t begin, int64_t end, RowAt row_at, EmitRow emit);

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
