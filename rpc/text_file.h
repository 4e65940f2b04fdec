#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace conclave {

// A small text file such as a PEM certificate. InvalidArgument, naming the path, if it cannot be
// read or is larger than 1 MiB.
absl::StatusOr<std::string> ReadPemFile(const std::string& path);

}  // namespace conclave
