#include "kernels/linear.h"

#include <algorithm>
#include <numeric>

#include "common/status_macros.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/panel_sums.h"
#include "kernels/validate.h"

namespace conclave {

absl::Status Linear(const LinearArgs& args, const Device& device) {
  RETURN_IF_ERROR(Validate(args));
  const PackedMatrix& weight = *args.weight;
  const cpu::CpuOps& ops = cpu::OpsFor(device.isa);
  const int num_threads = device.pool == nullptr ? 1 : device.pool->num_threads();
  const int item_panels = cpu::PanelsPerItem(weight.num_panels(), num_threads);
  const int64_t num_groups = (weight.num_panels() + item_panels - 1) / item_panels;
  // Few panels and many rows: the rows are cut too, into parts that still amortise the panels.
  const int64_t item_rows = num_groups >= 4 * num_threads ? args.num_rows : 96;
  const int64_t num_parts = args.num_rows == 0 ? 0 : (args.num_rows + item_rows - 1) / item_rows;

  // One call of a thread at a time; the pool's threads use their caller's.
  static thread_local cpu::InputRows input_of_thread;
  cpu::InputRows& input = input_of_thread;
  input.Prepare(device, weight.dtype(), args.input, args.num_rows, weight.in_features());
  auto row_at = [](int64_t row) { return row; };
  auto run_item = [&](int64_t item) {
    const int64_t first_panel = item / num_parts * item_panels;
    const int64_t first_row = item % num_parts * item_rows;
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
                   std::min(first_row + item_rows, args.num_rows), row_at, emit);
  };
  cpu::ForRange(device, num_groups * num_parts,
                cpu::LinearNanoseconds(args.num_rows, weight.bytes()),
                [&](int64_t begin, int64_t end) {
                  for (int64_t item = begin; item < end; ++item) run_item(item);
                });
  return absl::OkStatus();
}

}  // namespace conclave
