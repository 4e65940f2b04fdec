#include "kernels/expert_ffn.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "common/status_macros.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/panel_sums.h"
#include "kernels/validate.h"

namespace conclave {
namespace {

constexpr int64_t kPanel = cpu::kPanelWidth;

// One item is (group, a few panels): experts of one step are spread over the threads without a
// barrier between them, and each panel is read by one thread.
struct Items {
  int64_t per_group = 0;
  int panels = 0;  // of one item
};

Items CutPanels(int64_t num_groups, int64_t num_panels, int num_threads, int max_panels) {
  Items items;
  items.panels = std::min(max_panels, cpu::PanelsPerItem(num_groups * num_panels, num_threads));
  items.per_group = (num_panels + items.panels - 1) / items.panels;
  return items;
}

// intermediate[pair] = silu(gate_proj x) * up_proj x for the panels of one item: as many gate
// panels as up panels, so that a thread finds both halves of SwiGLU in its own sums.
void GateUp(const ExpertFfnArgs& args, const cpu::CpuOps& ops, const cpu::InputRows& input,
            const ExpertGroup& group, int64_t first_panel, int num_panels) {
  const PackedMatrix& weight = group.weights->gate_up_proj;
  const int64_t size = args.moe_intermediate_size;
  int64_t panels[cpu::kMaxTilePanels];
  std::iota(panels, panels + num_panels, first_panel);
  std::iota(panels + num_panels, panels + 2 * num_panels, size / kPanel + first_panel);
  auto emit = [&](int64_t pair, const float* sums) {
    ops.swiglu(sums, sums + num_panels * kPanel, num_panels * kPanel,
               args.workspace->intermediate.data() + pair * size + first_panel * kPanel);
  };
  cpu::PanelSums(ops, weight, absl::MakeConstSpan(panels, 2 * num_panels), input, group.first_pair,
                 group.first_pair + group.num_pairs, emit);
}

void Down(const ExpertFfnArgs& args, const cpu::CpuOps& ops, const cpu::InputRows& input,
          const ExpertGroup& group, int64_t first_panel, int num_panels) {
  int64_t panels[cpu::kMaxTilePanels];
  std::iota(panels, panels + num_panels, first_panel);
  const int64_t first_out = first_panel * kPanel;
  const int64_t num_outs = std::min<int64_t>(num_panels * kPanel, args.hidden_size - first_out);
  auto emit = [&](int64_t pair, const float* sums) {
    ops.round(sums, num_outs, args.output + pair * args.hidden_size + first_out);
  };
  cpu::PanelSums(ops, group.weights->down_proj, absl::MakeConstSpan(panels, num_panels), input,
                 group.first_pair, group.first_pair + group.num_pairs, emit);
}

}  // namespace

absl::Status ExpertFfn(const ExpertFfnArgs& args, const Device& device) {
  RETURN_IF_ERROR(Validate(args));
  const int64_t num_pairs = static_cast<int64_t>(args.pair_rows.size());
  if (num_pairs == 0) return absl::OkStatus();
  const size_t intermediate_size = num_pairs * args.moe_intermediate_size;
  if (args.workspace->intermediate.size() < intermediate_size) {
    args.workspace->intermediate.resize(intermediate_size);
  }
  const cpu::CpuOps& ops = cpu::OpsFor(device.isa);
  const int num_threads = device.pool == nullptr ? 1 : device.pool->num_threads();
  const int64_t num_groups = static_cast<int64_t>(args.groups.size());

  // One call of a thread at a time; the pool's threads use their caller's.
  static thread_local cpu::InputRows input_of_thread;
  cpu::InputRows& input = input_of_thread;

  auto run = [&](int64_t num_panels, int max_panels, size_t weight_bytes, auto run_item) {
    const Items items = CutPanels(num_groups, num_panels, num_threads, max_panels);
    const double rows_per_group = static_cast<double>(num_pairs) / static_cast<double>(num_groups);
    const double nanoseconds =
        static_cast<double>(num_groups) *
        cpu::LinearNanoseconds(static_cast<int64_t>(rows_per_group + 1), weight_bytes);
    cpu::ForShrinkingRanges(
        device, num_groups * items.per_group, nanoseconds, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const ExpertGroup& group = args.groups[i / items.per_group];
            const int64_t first = i % items.per_group * items.panels;
            run_item(args, ops, input, group, first,
                     static_cast<int>(std::min<int64_t>(items.panels, num_panels - first)));
          }
        });
  };
  const ExpertWeights& weights = *args.groups[0].weights;
  static thread_local std::vector<cpu::RowRun> runs;
  runs.clear();
  for (const ExpertGroup& group : args.groups) runs.push_back({group.first_pair, group.num_pairs});
  input.Prepare(device, weights.gate_up_proj.dtype(),
                {.values = args.hidden_states,
                 .num_values = args.num_rows,
                 .in_features = args.hidden_size,
                 .rows = args.pair_rows,
                 .runs = runs});
  run(args.moe_intermediate_size / kPanel, cpu::kMaxTilePanels / 2, weights.gate_up_proj.bytes(),
      GateUp);
  input.Prepare(device, weights.down_proj.dtype(),
                {.values = args.workspace->intermediate.data(),
                 .num_values = num_pairs,
                 .in_features = args.moe_intermediate_size,
                 .runs = runs});
  run(weights.down_proj.num_panels(), cpu::kMaxTilePanels, weights.down_proj.bytes(), Down);
  return absl::OkStatus();
}

}  // namespace conclave
