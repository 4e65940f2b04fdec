#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace conclave {

// generation_config.json: what the model's authors recommend. A field the file does not have is
// empty, so that the caller's own default (which depends on the thinking mode) applies.
struct GenerationConfig {
  std::optional<bool> do_sample;  // false: greedy
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int> top_k;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::vector<int32_t> eos_token_ids;  // empty: config.json's
  friend bool operator==(const GenerationConfig&, const GenerationConfig&) = default;
};

// InvalidArgument: not JSON, a wrong type, or a value no sampler takes (temperature below 0, ...).
absl::StatusOr<GenerationConfig> ParseGenerationConfig(absl::string_view json);

// Parses model_dir/generation_config.json; an empty GenerationConfig if there is no such file.
absl::StatusOr<GenerationConfig> LoadGenerationConfig(const std::string& model_dir);

}  // namespace conclave
