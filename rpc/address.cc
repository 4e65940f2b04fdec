#include "rpc/address.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"

namespace conclave {

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const auto bad = [text] {
    return errors::OutOfRange("address", absl::StrCat("\"", text, "\""),
                              "HOST:PORT with a port in 0..65535");
  };
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return bad();
  absl::string_view host = text.substr(0, colon);
  const absl::string_view port_text = text.substr(colon + 1);
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != absl::string_view::npos) {
    return bad();  // an IPv6 address needs brackets, or its last group would be the port
  }
  HostPort parsed{std::string(host), 0};
  if (host.empty() || !absl::SimpleAtoi(port_text, &parsed.port) || parsed.port < 0 ||
      parsed.port > 65535) {
    return bad();
  }
  return parsed;
}

absl::Status CheckListenAddress(absl::string_view text) {
  return absl::StartsWith(text, "unix:") ? absl::OkStatus() : ParseHostPort(text).status();
}

std::string FormatHostPort(absl::string_view host, int port) {
  const bool ipv6 = host.find(':') != absl::string_view::npos;
  return ipv6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

}  // namespace conclave
