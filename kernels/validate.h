#pragma once

#include "absl/status/status.h"
#include "kernels/attention.h"
#include "kernels/expert_ffn.h"
#include "kernels/linear.h"
#include "kernels/moe_combine.h"
#include "kernels/moe_gate.h"
#include "kernels/norm_rope.h"
#include "kernels/rms_norm.h"
#include "kernels/swiglu.h"

// What every implementation of an op checks before it computes: null pointers, sizes out of range,
// indexes that would leave an array. InvalidArgument naming the field. Arrays of zero rows may be
// null.
namespace conclave {

absl::Status Validate(const LinearArgs& args);
absl::Status Validate(const LinearSwiGluArgs& args);
absl::Status Validate(const RmsNormArgs& args);
absl::Status Validate(const NormRopeArgs& args);
absl::Status Validate(const AttentionArgs& args);
absl::Status Validate(const MoeGateArgs& args);
absl::Status Validate(const SwiGluArgs& args);
absl::Status Validate(const ExpertFfnArgs& args);
absl::Status Validate(const MoeCombineArgs& args);

}  // namespace conclave
