#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace conclave {

// Reads "0-31,40" as rising ids. `what` names them in errors: "expert". InvalidArgument: empty, not
// a number, a range that runs backwards, an id twice, or one not below `end`.
absl::StatusOr<std::vector<int>> ParseIdList(absl::string_view what, absl::string_view text,
                                             int end);

// The shortest text that ParseIdList reads back as `ids` (rising, distinct).
std::string FormatIdList(absl::Span<const int> ids);

}  // namespace conclave
