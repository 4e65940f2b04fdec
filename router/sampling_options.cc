#include "router/sampling_options.h"

#include <cstdint>
#include <limits>
#include <string>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

// Written so that NaN fails.
absl::Status CheckRange(absl::string_view field, float value, float low, float high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return errors::OutOfRange(field, value, absl::StrCat(low, "..", high));
}

absl::Status CheckPositive(absl::string_view field, float value, float high) {
  if (value > 0 && value <= high) return absl::OkStatus();
  return errors::OutOfRange(field, value, absl::StrCat("more than 0, at most ", high));
}

absl::Status CheckLogitBias(const v1::SamplingOptions& options, size_t num_ids) {
  if (options.logit_bias_size() > limits::kMaxLogitBiases) {
    return errors::OutOfRange("number of logit_bias entries", options.logit_bias_size(),
                              absl::StrCat("at most ", limits::kMaxLogitBiases));
  }
  for (const auto& [id, bias] : options.logit_bias()) {
    if (id >= num_ids) {
      return errors::OutOfRange("id in logit_bias", id, absl::StrCat("below ", num_ids));
    }
    RETURN_IF_ERROR(CheckRange(absl::StrCat("logit_bias of ", id), bias, -100, 100));
  }
  return absl::OkStatus();
}

absl::Status CheckLogprobs(const v1::SamplingOptions& options) {
  if (options.top_logprobs() > limits::kMaxTopLogprobs) {
    return errors::OutOfRange("top_logprobs", options.top_logprobs(),
                              absl::StrCat("at most ", limits::kMaxTopLogprobs));
  }
  if (options.top_logprobs() > 0 && !options.logprobs()) {
    return errors::OutOfRange("top_logprobs", options.top_logprobs(), "0 without logprobs");
  }
  return absl::OkStatus();
}

}  // namespace

SamplingFallback ChatFallback(ThinkingMode mode, const GenerationConfig& config) {
  SamplingFallback fallback;
  fallback.defaults = SamplingDefaultsFor(mode);
  fallback.min_p = static_cast<float>(config.min_p.value_or(0));
  fallback.repetition_penalty = static_cast<float>(config.repetition_penalty.value_or(1));
  return fallback;
}

SamplingFallback GenerateFallback(const GenerationConfig& config) {
  SamplingFallback fallback;
  fallback.defaults.temperature =
      config.do_sample.value_or(true) ? static_cast<float>(config.temperature.value_or(1)) : 0;
  fallback.defaults.top_p = static_cast<float>(config.top_p.value_or(1));
  fallback.defaults.top_k = config.top_k.value_or(0);
  fallback.min_p = static_cast<float>(config.min_p.value_or(0));
  fallback.repetition_penalty = static_cast<float>(config.repetition_penalty.value_or(1));
  return fallback;
}

absl::StatusOr<v1::SamplingParams> ResolveSampling(const v1::SamplingOptions& options,
                                                   const SamplingFallback& fallback,
                                                   size_t num_ids) {
  const SamplingDefaults& defaults = fallback.defaults;
  v1::SamplingParams params;
  params.set_temperature(options.has_temperature() ? options.temperature() : defaults.temperature);
  params.set_top_p(options.has_top_p() ? options.top_p() : defaults.top_p);
  params.set_top_k(options.has_top_k() ? options.top_k() : defaults.top_k);
  params.set_min_p(options.has_min_p() ? options.min_p() : fallback.min_p);
  params.set_presence_penalty(options.presence_penalty());
  params.set_frequency_penalty(options.frequency_penalty());
  params.set_repetition_penalty(options.has_repetition_penalty() ? options.repetition_penalty()
                                                                 : fallback.repetition_penalty);
  RETURN_IF_ERROR(CheckRange("temperature", params.temperature(), 0, 2));
  RETURN_IF_ERROR(CheckPositive("top_p", params.top_p(), 1));
  if (params.top_k() > std::numeric_limits<int32_t>::max()) {
    return errors::OutOfRange("top_k", params.top_k(), "0..2147483647");
  }
  RETURN_IF_ERROR(CheckRange("min_p", params.min_p(), 0, 1));
  RETURN_IF_ERROR(CheckRange("presence_penalty", params.presence_penalty(), -2, 2));
  RETURN_IF_ERROR(CheckRange("frequency_penalty", params.frequency_penalty(), -2, 2));
  RETURN_IF_ERROR(CheckPositive("repetition_penalty", params.repetition_penalty(), 10));
  RETURN_IF_ERROR(CheckLogprobs(options));
  RETURN_IF_ERROR(CheckLogitBias(options, num_ids));
  params.set_seed(options.has_seed() ? options.seed() : absl::Uniform<uint64_t>(absl::BitGen()));
  params.set_logprobs(options.logprobs());
  params.set_top_logprobs(options.top_logprobs());
  *params.mutable_logit_bias() = options.logit_bias();
  return params;
}

}  // namespace conclave
