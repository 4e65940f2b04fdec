#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace conclave {

// A line that a Conclave server prints on its standard output.
struct ServerEvent {
  enum class Kind {
    kListening,  // its ports are bound; it may still be loading
    kReady,      // it serves
  };
  Kind kind = Kind::kListening;
  // With kListening.
  std::string grpc;  // "127.0.0.1:43211"
  int grpc_port = 0;
  std::string metrics;  // "127.0.0.1:40001"
  int metrics_port = 0;
  std::string http;  // of an HTTP API; empty: it has none
  int http_port = 0;
};

// Reads {"event":"listening","grpc":"host:port","metrics":"host:port"}, perhaps with "http" too, or
// {"event":"ready"}.
// InvalidArgument for anything else.
absl::StatusOr<ServerEvent> ParseServerEvent(absl::string_view line);

}  // namespace conclave
