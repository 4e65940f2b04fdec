#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace conclave {

struct HostPort {
  std::string host;  // without the brackets of an IPv6 address
  int port = 0;
};

// Reads "127.0.0.1:8080", "localhost:0" or "[::1]:8080". InvalidArgument naming the text if the
// host is empty or the port is not 0..65535.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);

// OK for what a gRPC server may listen on: HOST:PORT as above, or unix:PATH. Else InvalidArgument.
absl::Status CheckListenAddress(absl::string_view text);

// The text ParseHostPort reads.
std::string FormatHostPort(absl::string_view host, int port);

}  // namespace conclave
