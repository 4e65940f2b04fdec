#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace conclave {

// The W3C trace context that a client may send: metadata and header "traceparent", as
// 00-<32 hex digits: trace>-<16: parent span>-<2: flags>. It is passed on as it came, since no
// spans are recorded here, and logged, so that log lines join the client's trace.
inline constexpr char kTraceparent[] = "traceparent";

// `header` if it is a valid traceparent; otherwise empty, as the standard asks: start anew.
std::string ValidTraceparent(absl::string_view header);

// The trace's 32 digits of a valid traceparent; empty for an empty one.
std::string TraceId(absl::string_view traceparent);

}  // namespace conclave
