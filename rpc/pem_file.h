#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace conclave {

// The text of a certificate or key. InvalidArgument, naming the path, if it cannot be read or is
// larger than 1 MiB.
absl::StatusOr<std::string> ReadPemFile(const std::string& path);

}  // namespace conclave
