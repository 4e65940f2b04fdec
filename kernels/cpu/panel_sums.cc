#include "kernels/cpu/panel_sums.h"

#include <algorithm>

namespace conclave::cpu {
namespace {

// Rows that share one pass over the panels, and pairs of inputs of one pass: 4 panels of 2048
// pairs are 512 KiB, half of the second-level cache of current server cores; the sums that wait
// between two passes are 24 KiB.
constexpr int kBlockRows = 96;
constexpr int64_t kBlockPairs = 2048;

// Rows in tiles of nearly equal height: 7 rows are 4 + 3, not 6 + 1.
int TileHeight(int rows_left, int max_rows) {
  const int tiles = (rows_left + max_rows - 1) / max_rows;
  return (rows_left + tiles - 1) / tiles;
}

// Widest shape that holds the rows in one tile, or the best one for many rows.
int ShapePanels(const CpuOps& ops, int64_t num_rows, int num_panels) {
  for (int panels = kMaxTilePanels; panels >= 1; panels /= 2) {
    if (panels <= num_panels && ops.tile_rows[panels] >= num_rows) return panels;
  }
  int panels = ops.main_panels;
  while (panels > num_panels) panels /= 2;
  return panels;
}

}  // namespace

void PanelSums(const CpuOps& ops, const BFloat16* const* panels, int num_panels,
               int64_t in_features, int64_t begin, int64_t end, RowAt row_at, EmitRow emit) {
  alignas(64) float sums[kBlockRows * kSumsStride];
  const BFloat16* rows[kBlockRows];
  const int64_t num_pairs = (in_features + 1) / 2;
  for (int64_t first = begin; first < end; first += kBlockRows) {
    const int num_rows = static_cast<int>(std::min<int64_t>(kBlockRows, end - first));
    for (int r = 0; r < num_rows; ++r) rows[r] = row_at(first + r);
    int64_t pair = 0;
    do {
      const int64_t pair_end = std::min(pair + kBlockPairs, num_pairs);
      for (int panel = 0, width = 0; panel < num_panels; panel += width) {
        width = ShapePanels(ops, num_rows, num_panels - panel);
        for (int r = 0, height = 0; r < num_rows; r += height) {
          height = TileHeight(num_rows - r, ops.tile_rows[width]);
          ops.linear_tile({.rows = rows + r,
                           .panels = panels + panel,
                           .num_rows = height,
                           .num_panels = width,
                           .in_features = in_features,
                           .pair_begin = pair,
                           .pair_end = pair_end,
                           .resume = pair > 0,
                           .sums = sums + r * kSumsStride + panel * kPanelWidth});
        }
      }
      pair = pair_end;
    } while (pair < num_pairs);
    for (int r = 0; r < num_rows; ++r) emit(first + r, sums + r * kSumsStride);
  }
}

}  // namespace conclave::cpu
