#include "kernels/cpu/panel_sums.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace conclave::cpu {
namespace {

// Rows that share one pass over the panels: more on AMX, whose products are fast enough to wait for
// the widening of FP8 and int4 otherwise.
constexpr int kMaxBlockRows = 512;
constexpr int kPlainBlockRows = 96;

// Pairs of inputs of one pass: 4 panels of 2048
// pairs are 512 KiB, half of the second-level cache of current server cores; the sums of 96 rows
// that wait between two passes are 24 KiB.
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
int ShapePanels(const int* tile_rows, int main_panels, int64_t num_rows, int num_panels) {
  for (int panels = kMaxTilePanels; panels >= 1; panels /= 2) {
    if (panels <= num_panels && tile_rows[panels] >= num_rows) return panels;
  }
  int panels = main_panels;
  while (panels > num_panels) panels /= 2;
  return panels;
}

// A block of rows against some panels.
struct Block {
  const CpuOps& ops;
  const PackedMatrix& weight;
  absl::Span<const int64_t> panels;
  const InputRows& input;
  int64_t first_row;
  int num_rows;
  float* sums;  // [num_rows rounded up to 16][kSumsStride]
};

int64_t DivideUp(int64_t value, int64_t step) { return (value + step - 1) / step; }

// From a panel to the one that the next item begins with: behind the first run of neighbours.
int64_t NextBytes(const Block& block) {
  int64_t run = 1;
  while (run < static_cast<int64_t>(block.panels.size()) &&
         block.panels[run] == block.panels[0] + run) {
    ++run;
  }
  return run * block.weight.panel_bytes();
}

// Steps [begin, end) of AMX; the panels point at the first of them.
AmxBlock AmxSteps(const Block& block, const uint8_t* const* panels, int64_t begin, int64_t end) {
  return {.rows = block.input.Tile(block.first_row),
          .row_bytes = block.input.tile_row_bytes(),
          .panels = panels,
          .num_rows = block.num_rows,
          .num_panels = static_cast<int>(block.panels.size()),
          .step_begin = begin,
          .step_end = end,
          .resume = begin > 0,
          .sums = block.sums};
}

// Inputs of pairs [begin, end); the panels point at the first of them.
void Bf16Pass(const Block& block, const BFloat16* const* panels, int64_t begin, int64_t end) {
  const BFloat16* rows[kMaxBlockRows];
  for (int r = 0; r < block.num_rows; ++r) rows[r] = block.input.Values(block.first_row + r);
  const int num_panels = static_cast<int>(block.panels.size());
  for (int panel = 0, width = 0; panel < num_panels; panel += width) {
    width =
        ShapePanels(block.ops.tile_rows, block.ops.main_panels, block.num_rows, num_panels - panel);
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
  if (block.ops.amx_bf16 != nullptr) {
    constexpr int64_t kStepPairs = kAmxStepBytes / 4;
    const uint8_t* panels[kMaxTilePanels];
    for (size_t p = 0; p < block.panels.size(); ++p) {
      panels[p] = block.weight.PanelBytes(block.panels[p]);
    }
    AmxBlock steps = AmxSteps(block, panels, 0, DivideUp(num_pairs, kStepPairs));
    steps.next_bytes = NextBytes(block);
    steps.last_lines = static_cast<int>(num_pairs - (steps.step_end - 1) * kStepPairs);
    return block.ops.amx_bf16(steps);
  }
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
    const uint8_t* panel_bytes[kMaxTilePanels];
    for (size_t p = 0; p < block.panels.size(); ++p) {
      BFloat16* to = widened[p];
      panels[p] = to;
      panel_bytes[p] = reinterpret_cast<const uint8_t*>(to);
      const uint8_t* from =
          block.weight.PanelBytes(block.panels[p]) + g * block.weight.block_bytes();
      for (int64_t i = g; i < end; ++i) {
        block.ops.widen_fp8(from, to);
        from += block.weight.block_bytes();
        to += kFp8BlockPairs * 2 * kPanelWidth;
      }
    }
    if (block.ops.amx_bf16 != nullptr) {
      constexpr int64_t kBlockSteps = kFp8BlockPairs * 4 / kAmxStepBytes;
      block.ops.amx_bf16(AmxSteps(block, panel_bytes, g * kBlockSteps,
                                  std::min(end * kBlockSteps, DivideUp(num_pairs, 16))));
    } else {
      Bf16Pass(block, panels, g * kFp8BlockPairs, std::min(end * kFp8BlockPairs, num_pairs));
    }
  }
}

// Groups [begin, end); panels point at their first block.
void Int8Pass(const Block& block, const uint8_t* const* panels, int64_t begin, int64_t end) {
  const int8_t* rows[kMaxBlockRows];
  const float* row_scales[kMaxBlockRows];
  const int64_t group_size = block.weight.group_size();
  for (int r = 0; r < block.num_rows; ++r) {
    rows[r] = block.input.Codes(block.first_row + r) + begin * group_size;
    row_scales[r] = block.input.Scales(block.first_row + r) + begin;
  }
  if (block.ops.amx_int8 != nullptr) {
    const int64_t group_steps = group_size / kAmxStepBytes;
    AmxBlock steps = AmxSteps(block, panels, begin * group_steps, end * group_steps);
    steps.row_scales = row_scales;
    steps.group_steps = group_steps;
    if (block.weight.dtype() == WeightDtype::kInt8) steps.next_bytes = NextBytes(block);
    return block.ops.amx_int8(steps);
  }
  const int num_panels = static_cast<int>(block.panels.size());
  for (int panel = 0, width = 0; panel < num_panels; panel += width) {
    width = ShapePanels(block.ops.int8_tile_rows, block.ops.int8_main_panels, block.num_rows,
                        num_panels - panel);
    for (int r = 0, height = 0; r < block.num_rows; r += height) {
      height = TileHeight(block.num_rows - r, block.ops.int8_tile_rows[width]);
      block.ops.int8_tile({.rows = rows + r,
                           .row_scales = row_scales + r,
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

void RunBlock(const Block& block) {
  switch (block.weight.dtype()) {
    case WeightDtype::kBf16:
      return Bf16Sums(block);
    case WeightDtype::kFp8:
      return Fp8Sums(block);
    case WeightDtype::kInt8:
      return Int8Sums(block);
    case WeightDtype::kInt4:
      return Int4Sums(block);
  }
}

template <typename T>
void GrowTo(int64_t size, T* values) {
  if (static_cast<int64_t>(values->size()) < size) values->resize(size);
}

}  // namespace

void InputRows::Prepare(const Device& device, WeightDtype dtype, const InputSource& source) {
  source_ = source;
  const bool quantized = dtype == WeightDtype::kInt8 || dtype == WeightDtype::kInt4;
  if (quantized) {
    group_size_ = WeightGroupSize(dtype);
    num_groups_ = DivideUp(source.in_features, group_size_);
    padded_size_ = num_groups_ * group_size_;
    Quantize(device);
  }
  if (OpsFor(device.isa).amx_bf16 != nullptr) PackTiles(device, quantized);
}

void InputRows::Quantize(const Device& device) {
  const CpuOps& ops = OpsFor(device.isa);
  GrowTo(source_.num_values * padded_size_, &codes_);
  GrowTo(source_.num_values * num_groups_, &scales_);
  ForRange(device, source_.num_values,
           static_cast<double>(source_.num_values * source_.in_features) / 8,
           [&](int64_t begin, int64_t end) {
             for (int64_t r = begin; r < end; ++r) {
               ops.quantize_row(source_.values + r * source_.in_features, source_.in_features,
                                group_size_, codes_.data() + r * padded_size_,
                                scales_.data() + r * num_groups_);
             }
           });
}

void InputRows::PackTiles(const Device& device, bool quantized) {
  const int64_t row_bytes =
      quantized ? padded_size_ : source_.in_features * static_cast<int64_t>(sizeof(BFloat16));
  tile_row_bytes_ = DivideUp(row_bytes, kAmxStepBytes) * kAmxStepBytes;
  tile_spans_.clear();
  int64_t num_rows = 0;
  for (const RowRun& run : source_.runs) {
    for (int64_t row = 0; row < run.count; row += kAmxRows) {
      tile_spans_.push_back({run.first + row, std::min<int64_t>(kAmxRows, run.count - row)});
    }
    num_rows += run.count;
  }
  GrowTo(num_rows * tile_row_bytes_ + kAmxRows * kAmxStepBytes, &tiles_);
  ForRange(device, static_cast<int64_t>(tile_spans_.size()),
           static_cast<double>(num_rows * tile_row_bytes_) / 8, [&](int64_t begin, int64_t end) {
             for (int64_t i = begin; i < end; ++i) PackTile(tile_spans_[i], quantized);
           });
}

void InputRows::PackTile(const RowRun& tile, bool quantized) {
  const int64_t row_bytes =
      quantized ? padded_size_ : source_.in_features * static_cast<int64_t>(sizeof(BFloat16));
  const int64_t full_bytes = row_bytes / kAmxStepBytes * kAmxStepBytes;
  const int64_t stride = tile.count * kAmxStepBytes;
  for (int64_t r = 0; r < tile.count; ++r) {
    const char* const from = quantized ? reinterpret_cast<const char*>(Codes(tile.first + r))
                                       : reinterpret_cast<const char*>(Values(tile.first + r));
    uint8_t* to = tiles_.data() + tile.first * tile_row_bytes_ + r * kAmxStepBytes;
    for (int64_t i = 0; i < full_bytes; i += kAmxStepBytes, to += stride) {
      std::memcpy(to, from + i, kAmxStepBytes);
    }
    if (full_bytes == row_bytes) continue;
    std::memset(to, 0, kAmxStepBytes);
    std::memcpy(to, from + full_bytes, row_bytes - full_bytes);
  }
}

void PanelSums(const CpuOps& ops, const PackedMatrix& weight, absl::Span<const int64_t> panels,
               const InputRows& input, int64_t begin, int64_t end, EmitRow emit) {
  alignas(64) float sums[kMaxBlockRows * kSumsStride];
  if (weight.in_features() == 0) std::fill(std::begin(sums), std::end(sums), 0.0f);
  const int64_t block_rows = ops.amx_bf16 != nullptr ? kMaxBlockRows : kPlainBlockRows;
  for (int64_t first = begin; first < end; first += block_rows) {
    const int num_rows = static_cast<int>(std::min(block_rows, end - first));
    const Block block{ops, weight, panels, input, first, num_rows, sums};
    if (weight.in_features() > 0) RunBlock(block);
    for (int r = 0; r < num_rows; ++r) emit(first + r, sums + r * kSumsStride);
  }
}

}  // namespace conclave::cpu
