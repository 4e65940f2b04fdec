#include "kernels/moe_gate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/validate.h"

namespace conclave {

absl::Status MoeGateReference(const MoeGateArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  const int top_k = args.num_experts_per_tok;
  std::vector<float> probabilities(args.num_experts);
  std::vector<int32_t> ids(args.num_experts);
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    const float* const logits = args.gate_logits + t * args.num_experts;
    for (int e = 0; e < args.num_experts; ++e) {
      if (!std::isfinite(logits[e])) {
        return absl::InternalError(
            absl::StrCat("gate logit of token ", t, ", expert ", e, " is ", logits[e]));
      }
    }
    const float max = *std::max_element(logits, logits + args.num_experts);
    float sum = 0;
    for (int e = 0; e < args.num_experts; ++e) sum += probabilities[e] = std::exp(logits[e] - max);
    for (float& probability : probabilities) probability /= sum;

    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    float kept = 0;
    for (int k = 0; k < top_k; ++k) kept += probabilities[ids[k]];
    for (int k = 0; k < top_k; ++k) {
      args.topk_ids[t * top_k + k] = ids[k];
      args.topk_weights[t * top_k + k] = probabilities[ids[k]] / (args.norm_topk_prob ? kept : 1);
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave
