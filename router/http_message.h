#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "router/http_server.h"

namespace conclave {

// Fills `path` (percent-decoded) and `query` from a request target: "/a%20b?c", also with a scheme
// and host before it as proxies send it. InvalidArgument for anything else.
absl::Status ParseHttpTarget(absl::string_view target, HttpRequest* request);

struct HttpFraming {
  bool chunked = false;
  bool length = false;  // Content-Length of the body
  bool keep_alive = true;
  bool http_1_0 = false;  // the client's version, which must be told of keep-alive
};
// Status line and headers with the empty line. Line breaks in header values become spaces.
std::string EncodeHttpHead(const HttpResponse& response, const HttpFraming& framing);

// One chunk of the chunked transfer encoding; empty for an empty one, which would end the body.
std::string EncodeHttpChunk(absl::string_view bytes);
inline constexpr absl::string_view kLastHttpChunk = "0\r\n\r\n";

}  // namespace conclave
