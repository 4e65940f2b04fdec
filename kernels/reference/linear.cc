#include "kernels/linear.h"

#include "common/status_macros.h"
#include "kernels/validate.h"

namespace conclave {

absl::Status LinearReference(const LinearArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  const int64_t in_features = args.weight->in_features();
  const int64_t out_features = args.weight->out_features();
  for (int64_t r = 0; r < args.num_rows; ++r) {
    const BFloat16* const input = args.input + r * in_features;
    for (int64_t o = 0; o < out_features; ++o) {
      float sum = 0;
      for (int64_t k = 0; k < in_features; ++k) {
        sum += ToFloat(input[k]) * ToFloat(args.weight->At(o, k));
      }
      float& output = args.output[r * out_features + o];
      output = args.accumulate ? output + sum : sum;
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave
