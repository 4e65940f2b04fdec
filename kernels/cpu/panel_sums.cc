#include "kernels/cpu/panel_sums.h"

#include <algorithm>

namespace conclave::cpu {
namespace {

// Rows that share one pass over the panels, and pairs of inputs of one pass: 4 panels of 2048
// pairs are 512 KiB, half of the second-level cache of current server cores; the sums that wait
// between two passes are 24 KiB.
constexpr int kBlockRows = 96;
constexpr int64_t kBlockPairs = 2048;

// Blocks of 4 panels widened at a time: 16 KiB of BF16 each, so that with few rows they stay in the
// first-level cache; more of them for many rows, whose sums are stored and loaded for each pass.
constexpr int kFp8BlockPairs = 64;
constexpr int kMaxFp8Blocks = 4;
constexpr int kMaxInt4Blocks = 16;  // 4 panels: 64 KiB of int8 and 4 KiB of scales
constexpr int kInt4BlockBytes = 64 + 64 * kPanelWidth;

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

// A block of rows against some panels.
struct Block {
  const CpuOps& ops;
  const PackedMatrix& weight;
  absl::Span<const int64_t> panels;
  const InputRows& input;
  const int64_t* rows;  // [num_rows] indices
  int num_rows;
  float* sums;  // [num_rows][kSumsStride]
};

// Inputs of pairs [begin, end); the panels point at the first of them.
void Bf16Pass(const Block& block, const BFloat16* const* panels, int64_t begin, int64_t end) {
  const BFloat16* rows[kBlockRows];
  for (int r = 0; r < block.num_rows; ++r) rows[r] = block.input.Row(block.rows[r]);
  const int num_panels = static_cast<int>(block.panels.size());
  for (int panel = 0, width = 0; panel < num_panels; panel += width) {
    width = ShapePanels(block.ops, block.num_rows, num_panels - panel);
    for (int r = 0, height = 0; r < block.num_rows; r += height) {
      height = TileHeight(block.num_rows - r, block.ops.tile_rows[width]);
      block.ops.linear_tile({.rows = rows + r,
                             .panels = panels + panel,
                             .num_rows = height,
                             .num_panels = width,
                             .in_features = block.weight.in_features(),
                             .pair_begin = begin,
                             .pair_end = end,
                             .resume = begin > 0,
                             .sums = block.sums + r * kSumsStride + panel * kPanelWidth});
    }
  }
}

void Bf16Sums(const Block& block) {
  const int64_t num_pairs = block.weight.num_pairs();
  for (int64_t pair = 0; pair < num_pairs; pair += kBlockPairs) {
    const BFloat16* panels[kMaxTilePanels];
    for (size_t p = 0; p < block.panels.size(); ++p) {
      panels[p] = block.weight.Panel(block.panels[p]) + pair * 2 * kPanelWidth;
    }
    Bf16Pass(block, panels, pair, std::min(pair + kBlockPairs, num_pairs));
  }
}

void Fp8Sums(const Block& block) {
  alignas(64) BFloat16 widened[kMaxTilePanels][kMaxFp8Blocks * kFp8BlockPairs * 2 * kPanelWidth];
  const int blocks = block.num_rows <= 8 ? 1 : kMaxFp8Blocks;
  const int64_t num_pairs = block.weight.num_pairs();
  for (int64_t g = 0; g < block.weight.num_groups(); g += blocks) {
    const int64_t end = std::min(g + blocks, block.weight.num_groups());
    const BFloat16* panels[kMaxTilePanels];
    for (size_t p = 0; p < block.panels.size(); ++p) {
      BFloat16* to = widened[p];
      panels[p] = to;
      const uint8_t* from =
          block.weight.PanelBytes(block.panels[p]) + g * block.weight.block_bytes();
      for (int64_t i = g; i < end; ++i) {
        block.ops.widen_fp8(from, to);
        from += block.weight.block_bytes();
        to += kFp8BlockPairs * 2 * kPanelWidth;
      }
    }
    Bf16Pass(block, panels, g * kFp8BlockPairs, std::min(end * kFp8BlockPairs, num_pairs));
  }
}

// Groups [begin, end); panels point at their first block.
void Int8Pass(const Block& block, const uint8_t* const* panels, int64_t begin, int64_t end) {
  const int8_t* rows[kBlockRows];
  const float* row_scales[kBlockRows];
  const int32_t* row_starts[kBlockRows];
  const int64_t group_size = block.weight.group_size();
  for (int r = 0; r < block.num_rows; ++r) {
    rows[r] = block.input.Codes(block.rows[r]) + begin * group_size;
    row_scales[r] = block.input.Scales(block.rows[r]) + begin;
    row_starts[r] = block.input.Starts(block.rows[r]) + begin;
  }
  const int num_panels = static_cast<int>(block.panels.size());
  for (int panel = 0, width = 0; panel < num_panels; panel += width) {
    width = std::min(block.ops.int8_tile_panels, num_panels - panel);
    for (int r = 0, height = 0; r < block.num_rows; r += height) {
      height = TileHeight(block.num_rows - r, block.ops.int8_tile_rows);
      block.ops.int8_tile({.rows = rows + r,
                           .row_scales = row_scales + r,
                           .row_starts = row_starts + r,
                           .panels = panels + panel,
                           .num_rows = height,
                           .num_panels = width,
                           .num_groups = end - begin,
                           .group_size = group_size,
                           .resume = begin > 0,
                           .sums = block.sums + r * kSumsStride + panel * kPanelWidth});
    }
  }
}

void Int8Sums(const Block& block) {
  const uint8_t* panels[kMaxTilePanels];
  for (size_t p = 0; p < block.panels.size(); ++p) {
    panels[p] = block.weight.PanelBytes(block.panels[p]);
  }
  Int8Pass(block, panels, 0, block.weight.num_groups());
}

void Int4Sums(const Block& block) {
  alignas(64) uint8_t widened[kMaxTilePanels][kMaxInt4Blocks * kInt4BlockBytes];
  const int64_t num_groups = block.weight.num_groups();
  for (int64_t g = 0; g < num_groups; g += kMaxInt4Blocks) {
    const int64_t end = std::min(g + kMaxInt4Blocks, num_groups);
    const uint8_t* panels[kMaxTilePanels];
    for (size_t p = 0; p < block.panels.size(); ++p) {
      panels[p] = widened[p];
      for (int64_t i = g; i < end; ++i) {
        block.ops.widen_int4(
            block.weight.PanelBytes(block.panels[p]) + i * block.weight.block_bytes(),
            widened[p] + (i - g) * kInt4BlockBytes);
      }
    }
    Int8Pass(block, panels, g, end);
  }
}

}  // namespace

void InputRows::Prepare(const Device& device, WeightDtype dtype, const BFloat16* values,
                        int64_t num_rows, int64_t in_features) {
  values_ = values;
  in_features_ = in_features;
  if (dtype != WeightDtype::kInt8 && dtype != WeightDtype::kInt4) return;
  group_size_ = WeightGroupSize(dtype);
  num_groups_ = (in_features + group_size_ - 1) / group_size_;
  const size_t num_scales = num_rows * num_groups_;
  if (scales_.size() < num_scales) {
    scales_.resize(num_scales);
    starts_.resize(num_scales);
  }
  if (codes_.size() < num_scales * group_size_) codes_.resize(num_scales * group_size_);
  const CpuOps& ops = OpsFor(device.isa);
  ForRange(device, num_rows, static_cast<double>(num_rows * in_features) / 4,
           [&](int64_t begin, int64_t end) {
             for (int64_t r = begin; r < end; ++r) {
               ops.quantize_row(Row(r), in_features, group_size_,
                                codes_.data() + r * num_groups_ * group_size_,
                                scales_.data() + r * num_groups_, starts_.data() + r * num_groups_);
             }
           });
}

void PanelSums(const CpuOps& ops, const PackedMatrix& weight, absl::Span<const int64_t> panels,
               const InputRows& input, int64_t begin, int64_t end, RowAt row_at, EmitRow emit) {
  alignas(64) float sums[kBlockRows * kSumsStride];
  if (weight.in_features() == 0) std::fill(std::begin(sums), std::end(sums), 0.0f);
  int64_t rows[kBlockRows];
  for (int64_t first = begin; first < end; first += kBlockRows) {
    const int num_rows = static_cast<int>(std::min<int64_t>(kBlockRows, end - first));
    for (int r = 0; r < num_rows; ++r) rows[r] = row_at(first + r);
    const Block block{ops, weight, panels, input, rows, num_rows, sums};
    switch (weight.dtype()) {
      case WeightDtype::kBf16:
        Bf16Sums(block);
        break;
      case WeightDtype::kFp8:
        Fp8Sums(block);
        break;
      case WeightDtype::kInt8:
        Int8Sums(block);
        break;
      case WeightDtype::kInt4:
        Int4Sums(block);
        break;
    }
    for (int r = 0; r < num_rows; ++r) emit(first + r, sums + r * kSumsStride);
  }
}

}  // namespace conclave::cpu
