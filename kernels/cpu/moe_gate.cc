#include "kernels/moe_gate.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cpu/plain_exp.h"
#include "kernels/validate.h"

namespace conclave {
namespace {

// Inserts experts by falling logit into a list of top_k; a later one passes only larger logits, so
// equal ones stay in the order of their ids.
void SelectTopK(const float* logits, int num_experts, int top_k, int32_t* ids) {
  int kept = 0;
  for (int e = 0; e < num_experts; ++e) {
    if (kept == top_k && logits[e] <= logits[ids[top_k - 1]]) continue;
    int at = kept < top_k ? kept++ : top_k - 1;
    for (; at > 0 && logits[ids[at - 1]] < logits[e]; --at) ids[at] = ids[at - 1];
    ids[at] = e;
  }
}

}  // namespace

// A token costs well under a microsecond, the gate's product before it a hundred times that: it
// runs on the calling thread and is one code for every instruction set, so that all of them agree
// on the experts of equal logits.
absl::Status MoeGate(const MoeGateArgs& args, const Device&) {
  RETURN_IF_ERROR(Validate(args));
  const int top_k = args.num_experts_per_tok;
  float weights[limits::kMaxExperts];
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    const float* const logits = args.gate_logits + t * args.num_experts;
    for (int e = 0; e < args.num_experts; ++e) {
      if (!std::isfinite(logits[e])) {
        return absl::InternalError(
            absl::StrCat("gate logit of token ", t, ", expert ", e, " is ", logits[e]));
      }
    }
    int32_t* const ids = args.topk_ids + t * top_k;
    SelectTopK(logits, args.num_experts, top_k, ids);
    const float max = logits[ids[0]];
    float sum = 0;  // of the kept experts if they are to sum to 1, else of all
    if (args.norm_topk_prob) {
      for (int k = 0; k < top_k; ++k) sum += weights[k] = cpu::PlainExp(logits[ids[k]] - max);
    } else {
      for (int e = 0; e < args.num_experts; ++e) sum += cpu::PlainExp(logits[e] - max);
      for (int k = 0; k < top_k; ++k) weights[k] = cpu::PlainExp(logits[ids[k]] - max);
    }
    for (int k = 0; k < top_k; ++k) args.topk_weights[t * top_k + k] = weights[k] / sum;
  }
  return absl::OkStatus();
}

}  // namespace conclave
