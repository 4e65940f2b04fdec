#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace conclave {

// The whole of a file of a checkpoint. NotFound if there is none; DataLoss if it cannot be read or
// is larger than limits::kMaxJsonFileBytes.
absl::StatusOr<std::string> ReadCheckpointText(const std::string& path);

}  // namespace conclave
