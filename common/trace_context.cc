#include "common/trace_context.h"

#include <algorithm>

namespace conclave {
namespace {

// Places in version 00; later versions may append "-" and more.
constexpr size_t kTraceAt = 3, kTraceDigits = 32;
constexpr size_t kSpanAt = 36, kSpanDigits = 16;
constexpr size_t kFlagsAt = 53, kFlagsDigits = 2;
constexpr size_t kBytes = 55;
constexpr size_t kMaxBytes = 128;  // more than any version so far; what is logged has a bound

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(absl::string_view text) {
  return text.find_first_not_of('0') == absl::string_view::npos;
}

}  // namespace

std::string ValidTraceparent(absl::string_view header) {
  if (header.size() < kBytes || header.size() > kMaxBytes) return "";
  const absl::string_view version = header.substr(0, 2);
  const bool tail_fits =
      header.size() == kBytes || (version != "00" && header[kBytes] == '-' &&
                                  header.find_first_of(" \t\r\n\"") == absl::string_view::npos);
  const absl::string_view trace = header.substr(kTraceAt, kTraceDigits);
  const absl::string_view span = header.substr(kSpanAt, kSpanDigits);
  const bool valid = tail_fits && IsHex(version) && version != "ff" && header[2] == '-' &&
                     header[kSpanAt - 1] == '-' && header[kFlagsAt - 1] == '-' && IsHex(trace) &&
                     IsHex(span) && IsHex(header.substr(kFlagsAt, kFlagsDigits)) &&
                     !IsZero(trace) && !IsZero(span);
  return valid ? std::string(header) : "";
}

std::string TraceId(absl::string_view traceparent) {
  return traceparent.size() < kBytes ? "" : std::string(traceparent.substr(kTraceAt, kTraceDigits));
}

}  // namespace conclave
