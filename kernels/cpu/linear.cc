#include "kernels/linear.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "common/status_macros.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/panel_sums.h"
#include "kernels/swiglu.h"
#include "kernels/validate.h"

namespace conclave {
namespace {

int NumThreads(const Device& device) {
  return device.pool == nullptr ? 1 : device.pool->num_threads();
}

// Rows that one thread takes at a time, a multiple of 16.
int64_t RowsPerItem(const cpu::CpuOps& ops, const PackedMatrix& weight, int64_t num_rows,
                    int64_t num_groups, int num_threads) {
  int64_t rows = std::max<int64_t>(num_rows, 1);
  if (ops.amx_bf16 != nullptr) {
    // Rows that fit in three quarters of a second-level cache of 2 MiB, in parts of one height:
    // with AMX they would otherwise be fetched from farther away for longer than their products
    // take.
    constexpr int64_t kRowsBytes = 3 << 19;
    constexpr int64_t kStep = 32;  // two tiles
    const bool codes = weight.dtype() == WeightDtype::kInt8 || weight.dtype() == WeightDtype::kInt4;
    const int64_t row_bytes = weight.in_features() * (codes ? 1 : 2) + 1;
    const int64_t fitting = std::max(kRowsBytes / row_bytes, kStep);
    const int64_t num_parts = (rows + fitting - 1) / fitting;
    rows = ((rows + num_parts - 1) / num_parts + kStep - 1) / kStep * kStep;
  }
  // Few panels and many rows: the rows are cut into parts that still amortise the panels.
  return num_groups >= 4 * num_threads ? rows : std::min<int64_t>(rows, 96);
}

// Calls run(input, group, begin, end) for every group of panels and part of the rows, in parallel:
// all groups for a part before the next part, so that its rows stay in the cache.
void ForGroups(
    const Device& device, const cpu::CpuOps& ops, const PackedMatrix& weight,
    const BFloat16* values, int64_t num_rows, int64_t num_groups,
    absl::FunctionRef<void(const cpu::InputRows& input, int64_t group, int64_t begin, int64_t end)>
        run) {
  const int64_t item_rows = RowsPerItem(ops, weight, num_rows, num_groups, NumThreads(device));
  const int64_t num_parts = num_rows == 0 ? 0 : (num_rows + item_rows - 1) / item_rows;

  // One call of a thread at a time; the pool's threads use their caller's.
  static thread_local cpu::InputRows input_of_thread;
  cpu::InputRows& input = input_of_thread;
  const cpu::RowRun all{0, num_rows};
  input.Prepare(device, weight.dtype(),
                {.values = values,
                 .num_values = num_rows,
                 .in_features = weight.in_features(),
                 .runs = {&all, 1}});
  cpu::ForShrinkingRanges(
      device, num_groups * num_parts, cpu::LinearNanoseconds(num_rows, weight.bytes()),
      [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t first_row = item / num_groups * item_rows;
          run(input, item % num_groups, first_row, std::min(first_row + item_rows, num_rows));
        }
      });
}

// FP32 rows beyond half of a second-level cache go past it: whole lines, which are not read before
// they are written, and nothing that is still wanted is thrown out for them.
constexpr int64_t kStreamBytes = 1 << 20;

bool Streams(const cpu::CpuOps& ops, const LinearArgs& args) {
  const int64_t row_bytes = args.weight->out_features() * static_cast<int64_t>(sizeof(float));
  return ops.stream_row != nullptr && !args.accumulate && row_bytes % 64 == 0 &&
         reinterpret_cast<uintptr_t>(args.output) % 64 == 0 &&
         args.num_rows * row_bytes >= kStreamBytes;
}

}  // namespace

absl::Status Linear(const LinearArgs& args, const Device& device) {
  RETURN_IF_ERROR(Validate(args));
  const PackedMatrix& weight = *args.weight;
  const cpu::CpuOps& ops = cpu::OpsFor(device.isa);
  const int item_panels = cpu::PanelsPerItem(weight.num_panels(), NumThreads(device));
  const bool streams = Streams(ops, args);
  auto run = [&](const cpu::InputRows& input, int64_t group, int64_t begin, int64_t end) {
    const int64_t first_panel = group * item_panels;
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
      } else if (streams) {
        ops.stream_row(sums, num_outs, output);
      } else {
        std::copy_n(sums, num_outs, output);
      }
    };
    cpu::PanelSums(ops, weight, absl::MakeConstSpan(panels, num_panels), input, begin, end, emit);
    if (streams) ops.stream_end();
  };
  ForGroups(device, ops, weight, args.input, args.num_rows,
            (weight.num_panels() + item_panels - 1) / item_panels, run);
  return absl::OkStatus();
}

absl::Status LinearSwiGlu(const LinearSwiGluArgs& args, const Device& device) {
  RETURN_IF_ERROR(Validate(args));
  const PackedMatrix& weight = *args.gate_up_proj;
  const int64_t size = weight.out_features() / 2;
  if (size % cpu::kPanelWidth != 0) {  // a panel holds rows of both halves
    static thread_local std::vector<float> gate_up;
    gate_up.resize(args.num_rows * 2 * size);
    RETURN_IF_ERROR(Linear({.input = args.input,
                            .weight = &weight,
                            .output = gate_up.data(),
                            .num_rows = args.num_rows},
                           device));
    return SwiGlu({.gate_up = gate_up.data(),
                   .output = args.output,
                   .num_rows = args.num_rows,
                   .intermediate_size = size},
                  device);
  }
  const cpu::CpuOps& ops = cpu::OpsFor(device.isa);
  const int64_t num_panels = size / cpu::kPanelWidth;  // of each half
  const int64_t item_panels =
      std::max(cpu::PanelsPerItem(weight.num_panels(), NumThreads(device)) / 2, 1);
  auto run = [&](const cpu::InputRows& input, int64_t group, int64_t begin, int64_t end) {
    const int64_t first_panel = group * item_panels;
    const int64_t count = std::min(item_panels, num_panels - first_panel);
    const int64_t outs = count * cpu::kPanelWidth;
    int64_t panels[cpu::kMaxTilePanels];
    std::iota(panels, panels + count, first_panel);
    std::iota(panels + count, panels + 2 * count, num_panels + first_panel);
    auto emit = [&](int64_t row, const float* sums) {
      ops.swiglu(sums, sums + outs, outs,
                 args.output + row * size + first_panel * cpu::kPanelWidth);
    };
    cpu::PanelSums(ops, weight, absl::MakeConstSpan(panels, 2 * count), input, begin, end, emit);
  };
  ForGroups(device, ops, weight, args.input, args.num_rows,
            (num_panels + item_panels - 1) / item_panels, run);
  return absl::OkStatus();
}

}  // namespace conclave
