#pragma once

#include <cstdint>
#include <istream>
#include <ostream>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "text/json_text.h"

namespace conclave {

// Writes answer(line) for each line of `in` that is not empty, or {"error": "line N: ..."} where
// it fails. InvalidArgument at the end if any did; stops early only if `out` fails (Unavailable).
absl::Status AnswerLines(std::istream& in, std::ostream& out,
                         absl::FunctionRef<absl::StatusOr<JsonValue>(const std::string&)> answer);

JsonValue IdsToJson(absl::Span<const uint32_t> ids);

}  // namespace conclave
