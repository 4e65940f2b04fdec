#include "kernels/expert_ffn.h"

#include <vector>

#include "common/status_macros.h"
#include "kernels/linear.h"
#include "kernels/swiglu.h"
#include "kernels/validate.h"

namespace conclave {

absl::Status ExpertFfnReference(const ExpertFfnArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  std::vector<float> gate_up(2 * args.moe_intermediate_size), down(args.hidden_size);
  std::vector<BFloat16> intermediate(args.moe_intermediate_size);
  for (const ExpertGroup& group : args.groups) {
    for (int64_t pair = group.first_pair; pair < group.first_pair + group.num_pairs; ++pair) {
      RETURN_IF_ERROR(LinearReference(
          {.input = args.hidden_states + int64_t{args.pair_rows[pair]} * args.hidden_size,
           .weight = &group.weights->gate_up_proj,
           .output = gate_up.data(),
           .num_rows = 1}));
      RETURN_IF_ERROR(SwiGluReference({.gate_up = gate_up.data(),
                                       .output = intermediate.data(),
                                       .num_rows = 1,
                                       .intermediate_size = args.moe_intermediate_size}));
      RETURN_IF_ERROR(LinearReference({.input = intermediate.data(),
                                       .weight = &group.weights->down_proj,
                                       .output = down.data(),
                                       .num_rows = 1}));
      for (int64_t i = 0; i < args.hidden_size; ++i) {
        args.output[pair * args.hidden_size + i] = ToBFloat16(down[i]);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave
