#include "kernels/swiglu.h"

#include <cmath>

#include "common/status_macros.h"
#include "kernels/validate.h"

namespace conclave {

absl::Status SwiGluReference(const SwiGluArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  for (int64_t r = 0; r < args.num_rows; ++r) {
    const float* const gate = args.gate_up + r * 2 * args.intermediate_size;
    const float* const up = gate + args.intermediate_size;
    for (int64_t i = 0; i < args.intermediate_size; ++i) {
      const float silu = gate[i] / (1.0f + std::exp(-gate[i]));
      args.output[r * args.intermediate_size + i] = ToBFloat16(silu * up[i]);
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave
