#include "kernels/rms_norm.h"

#include <cmath>

#include "common/status_macros.h"
#include "kernels/validate.h"

namespace conclave {

absl::Status RmsNormReference(const RmsNormArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  for (int64_t r = 0; r < args.num_rows; ++r) {
    const float* const input = args.input + r * args.hidden_size;
    float squares = 0;
    for (int64_t i = 0; i < args.hidden_size; ++i) squares += input[i] * input[i];
    const float scale =
        1.0f / std::sqrt(squares / static_cast<float>(args.hidden_size) + args.rms_norm_eps);
    for (int64_t i = 0; i < args.hidden_size; ++i) {
      args.output[r * args.hidden_size + i] = ToBFloat16(input[i] * scale * args.weight[i]);
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave
