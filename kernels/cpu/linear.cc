#include "kernels/linear.h"

#include <algorithm>
#include <numeric>

#include "common/status_macros.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/panel_sums.h"
#include "kernels/validate.h"

namespace conclave {
namespace {

// Rows that one thread takes at a time, a multiple of 16.
int64_t RowsPerItem(const cpu::CpuOps& ops, const LinearArgs& args, int64_t num_groups,
                    int num_threads) {
  int64_t rows = std::max<int64_t>(args.num_rows, 1);
  if (ops.amx_bf16 != nullptr) {
    // Rows that fit in three quarters of a second-level cache of 2 MiB, in parts of one height:
    // with AMX they would otherwise be fetched from farther away for longer than their products
    // take.
    constexpr int64_t kRowsBytes = 3 << 19;
    constexpr int64_t kStep = 32;  // two tiles
    const bool codes =
        args.weight->dtype() == WeightDtype::kInt8 || args.weight->dtype() == WeightDtype::kInt4;
    const int64_t row_bytes = args.weight->in_features() * (codes ? 1 : 2) + 1;
    const int64_t fitting = std::max(kRowsBytes / row_bytes, kStep);
    const int64_t num_parts = (rows + fitting - 1) / fitting;
    rows = ((rows + num_parts - 1) / num_parts + kStep - 1) / kStep * kStep;
  }
  // Few panels and many rows: the rows are cut into parts that still amortise the panels.
  return num_groups >= 4 * num_threads ? rows : std::min<int64_t>(rows, 96);
}

}  // namespace

absl::Status Linear(const LinearArgs& args, const Device& device) {
  RETURN_IF_ERROR(Validate(args));
  const PackedMatrix& weight = *args.weight;
  const cpu::CpuOps& ops = cpu::OpsFor(device.isa);
  const int num_threads = device.pool == nullptr ? 1 : device.pool->num_threads();
  const int item_panels = cpu::PanelsPerItem(weight.num_panels(), num_threads);
  const int64_t num_groups = (weight.num_panels() + item_panels - 1) / item_panels;
  const int64_t item_rows = RowsPerItem(ops, args, num_groups, num_threads);
  const int64_t num_parts = args.num_rows == 0 ? 0 : (args.num_rows + item_rows - 1) / item_rows;

  // One call of a thread at a time; the pool's threads use their caller's.
  static thread_local cpu::InputRows input_of_thread;
  cpu::InputRows& input = input_of_thread;
  const cpu::RowRun run{0, args.num_rows};
  input.Prepare(device, weight.dtype(),
                {.values = args.input,
                 .num_values = args.num_rows,
                 .in_features = weight.in_features(),
                 .runs = {&run, 1}});
  auto run_item = [&](int64_t item) {
    // All panels for a part of the rows before the next part: the rows stay in the cache.
    const int64_t first_panel = item % num_groups * item_panels;
    const int64_t first_row = item / num_groups * item_rows;
    const int num_panels =
        static_cast<int>(std::min<int64_t>(item_panels, weight.num_panels() - first_panel));
    int64_t panels[cpu::kMaxTilePanels];
    std::iota(panels, panels + num_panels, first_panel);
    const int64_t first_out = first_panel * cpu::kPanelWidth;
    const int64_t num_outs =
        std::min<int64_t>(num_panels * cpu::kPanelWidth, weight.out_features() - first_out);
    auto emit = [&](int64_t row, const float* sums) {
      float* const output = args.output + row * weight.out_features() + first_out;
      if (args.accumulate) {
        for (int64_t i = 0; i < num_outs; ++i) output[i] += sums[i];
      } else {
        std::copy_n(sums, num_outs, output);
      }
    };
    cpu::PanelSums(ops, weight, absl::MakeConstSpan(panels, num_panels), input, first_row,
                   std::min(first_row + item_rows, args.num_rows), emit);
  };
  cpu::ForShrinkingRanges(device, num_groups * num_parts,
                          cpu::LinearNanoseconds(args.num_rows, weight.bytes()),
                          [&](int64_t begin, int64_t end) {
                            for (int64_t item = begin; item < end; ++item) run_item(item);
                          });
  return absl::OkStatus();
}

}  // namespace conclave
