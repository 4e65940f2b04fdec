#include "kernels/moe_combine.h"

#include "common/status_macros.h"
#include "kernels/validate.h"

namespace conclave {

absl::Status MoeCombineReference(const MoeCombineArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    for (int64_t i = 0; i < args.hidden_size; ++i) {
      float sum = 0;
      for (int k = 0; k < args.num_experts_per_tok; ++k) {
        const int64_t pair = t * args.num_experts_per_tok + k;
        sum += args.topk_weights[pair] * ToFloat(args.expert_rows[pair][i]);
      }
      args.residual[t * args.hidden_size + i] += sum;
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave
