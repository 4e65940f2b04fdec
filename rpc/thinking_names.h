#pragma once

#include "absl/strings/string_view.h"
#include "proto/conclave/v1/inference.pb.h"

// The words for a thinking report's fields, the same in JSON, in metrics' labels and on a terminal.
namespace conclave {

// "thinking", "off"; "raw" for Generate, which has no template.
absl::string_view ThinkingModeWord(v1::ThinkingMode mode);
// "request", "soft_switch", "default", "model"; "none" for a raw prompt.
absl::string_view ThinkingSourceWord(v1::ThinkingSource source);
// "natural", "budget", "answer_reserve", "client"; "none" while it goes on or if there was none.
absl::string_view ThinkingEndWord(v1::ThinkingEnd end);
// "ceiling", "adaptive"; "none" for the budget that was asked for.
absl::string_view BudgetLimitWord(v1::BudgetLimit limit);

}  // namespace conclave
