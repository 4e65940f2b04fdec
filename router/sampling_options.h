#pragma once

#include <cstddef>

#include "absl/status/statusor.h"
#include "model/generation_config.h"
#include "proto/conclave/v1/inference.pb.h"
#include "proto/conclave/v1/worker.pb.h"
#include "text/thinking_mode.h"

namespace conclave {

// What stands in for the fields a request leaves unset.
struct SamplingFallback {
  SamplingDefaults defaults;
  float min_p = 0;
  float repetition_penalty = 1;
};

// Chat: temperature, top_p and top_k of the effective thinking mode (the mode decides, and
// generation_config.json, which knows one mode only, does not), min_p and repetition_penalty of
// generation_config.json.
SamplingFallback ChatFallback(ThinkingMode mode, const GenerationConfig& config);
// Generate has no mode: generation_config.json (do_sample false is temperature 0), else plain
// sampling: temperature 1, top_p 1, top_k 0.
SamplingFallback GenerateFallback(const GenerationConfig& config);

// The parameters a worker gets; an unset seed is drawn. InvalidArgument naming the field that is
// out of its range (NaN is out of each), num_ids being the size of the vocabulary.
absl::StatusOr<v1::SamplingParams> ResolveSampling(const v1::SamplingOptions& options,
                                                   const SamplingFallback& fallback,
                                                   size_t num_ids);

}  // namespace conclave
