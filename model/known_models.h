#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/qwen3_config.h"

namespace conclave {

// Shapes of the released Qwen3 models, April 2025: qwen3-0.6b, -1.7b, -4b, -8b, -14b, -32b,
// -30b-a3b and -235b-a22b. Source: their config.json and table 1 and 2 of the Qwen3 report.
// NotFound, listing the names, for any other name (letter case does not matter).
absl::StatusOr<Qwen3Config> KnownModel(absl::string_view name);

// The eight names, smallest model first.
std::vector<std::string> KnownModelNames();

}  // namespace conclave
