#pragma once

#include <algorithm>

#include "absl/functional/function_ref.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/packed_matrix.h"

namespace conclave::cpu {

// Gives the input row at an index; receives the finished sums of one, [16 * num_panels].
using RowAt = absl::FunctionRef<const BFloat16*(int64_t row)>;
using EmitRow = absl::FunctionRef<void(int64_t row, const float* sums)>;

// Sums of rows [begin, end) with up to kMaxTilePanels panels of `in_features` inputs. Walks the
// rows in tiles, so that the panels, once read, stay in the second-level cache.
void PanelSums(const CpuOps& ops, const BFloat16* const* panels, int num_panels,
               int64_t in_features, int64_t begin, int64_t end, RowAt row_at, EmitRow emit);

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
