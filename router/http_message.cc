#include "router/http_message.h"

#include <boost/beast/http/status.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace conclave {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = absl::ascii_tolower(static_cast<unsigned char>(c));
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// False for a % without two hex digits, and for a NUL.
bool PercentDecode(absl::string_view text, std::string* decoded) {
  decoded->clear();
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (i + 2 >= text.size()) return false;
      const int high = HexDigit(text[i + 1]);
      const int low = HexDigit(text[i + 2]);
      if (high < 0 || low < 0) return false;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (c == '\0') return false;
    decoded->push_back(c);
  }
  return true;
}

std::string OneLine(std::string text) {
  for (char& c : text) {
    if (c == '\r' || c == '\n' || c == '\0') c = ' ';
  }
  return text;
}

}  // namespace

absl::string_view HttpRequest::Header(absl::string_view name) const {
  for (const auto& [header, value] : headers) {
    if (absl::EqualsIgnoreCase(header, name)) return value;
  }
  return {};
}

absl::Status ParseHttpTarget(absl::string_view target, HttpRequest* request) {
  absl::string_view rest = target;
  if (const size_t scheme = rest.find("://"); scheme != absl::string_view::npos && rest[0] != '/') {
    const size_t path = rest.find('/', scheme + 3);
    rest = path == absl::string_view::npos ? absl::string_view("/") : rest.substr(path);
  }
  const size_t question = rest.find('?');
  request->query.clear();
  if (question != absl::string_view::npos) request->query = std::string(rest.substr(question + 1));
  const bool known_form = absl::StartsWith(rest, "/") || rest == "*";
  if (!known_form || !PercentDecode(rest.substr(0, question), &request->path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the request target is \"", target.substr(0, 200), "\", want a path"));
  }
  return absl::OkStatus();
}

std::string EncodeHttpHead(const HttpResponse& response, const HttpFraming& framing) {
  namespace http = boost::beast::http;
  const auto reason = http::obsolete_reason(http::int_to_status(response.status));
  std::string head = absl::StrCat("HTTP/1.1 ", response.status, " ",
                                  absl::string_view(reason.data(), reason.size()), "\r\n");
  const auto add = [&head](absl::string_view name, const std::string& value) {
    absl::StrAppend(&head, name, ": ", OneLine(value), "\r\n");
  };
  add("Date", absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone()));
  if (!response.content_type.empty()) add("Content-Type", response.content_type);
  for (const auto& [name, value] : response.headers) add(name, value);
  if (framing.length) add("Content-Length", absl::StrCat(response.body.size()));
  if (framing.chunked) add("Transfer-Encoding", "chunked");
  if (!framing.keep_alive) {
    add("Connection", "close");
  } else if (framing.http_1_0) {
    add("Connection", "keep-alive");
  }
  absl::StrAppend(&head, "\r\n");
  return head;
}

std::string EncodeHttpChunk(absl::string_view bytes) {
  if (bytes.empty()) return {};
  return absl::StrCat(absl::Hex(bytes.size()), "\r\n", bytes, "\r\n");
}

}  // namespace conclave
