#include "router/openai_error.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kContextLengthWords[] = "maximum context length";  // errors::PromptTooLong

absl::string_view ErrorType(int http_status) {
  if (http_status == 429) return "rate_limit_error";
  return http_status < 500 ? "invalid_request_error" : "server_error";
}

bool IsPathCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
         absl::StrContains("_.[]", absl::string_view(&c, 1));
}

// The field that a message of the form "<path> is ..." is about.
Json Param(absl::string_view message) {
  const size_t end = message.find(' ');
  if (end == absl::string_view::npos || !absl::StartsWith(message.substr(end), " is ")) {
    return nullptr;
  }
  const absl::string_view path = message.substr(0, end);
  if (!std::all_of(path.begin(), path.end(), IsPathCharacter)) return nullptr;
  return std::string(path);
}

Json Code(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      if (absl::StrContains(status.message(), kContextLengthWords)) {
        return "context_length_exceeded";
      }
      return nullptr;
    case absl::StatusCode::kNotFound:
      if (absl::StartsWith(status.message(), "model is ")) return "model_not_found";
      return nullptr;
    case absl::StatusCode::kResourceExhausted:
      return "rate_limit_exceeded";
    default:
      return nullptr;
  }
}

std::string ErrorJson(absl::string_view message, int http_status, Json param, Json code) {
  const Json json = {{"error",
                      {{"message", std::string(message)},
                       {"type", std::string(ErrorType(http_status))},
                       {"param", std::move(param)},
                       {"code", std::move(code)}}}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

int HttpStatus(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
      return 400;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;  // nginx's "client closed request"
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string OpenAiErrorJson(const absl::Status& status) {
  const bool callers = absl::IsInvalidArgument(status) || absl::IsNotFound(status);
  return ErrorJson(status.message(), HttpStatus(status.code()),
                   callers ? Param(status.message()) : Json(), Code(status));
}

HttpResponse OpenAiErrorResponse(const absl::Status& status, absl::Duration retry_after) {
  HttpResponse response;
  response.status = HttpStatus(status.code());
  response.body = OpenAiErrorJson(status);
  if (response.status == 429 || response.status == 503) {
    const int64_t seconds = absl::ToInt64Seconds(absl::Ceil(retry_after, absl::Seconds(1)));
    response.headers.emplace_back("Retry-After", absl::StrCat(std::max<int64_t>(seconds, 1)));
  }
  return response;
}

HttpResponse OpenAiHttpError(int http_status, absl::string_view message) {
  HttpResponse response;
  response.status = http_status;
  response.body = ErrorJson(message, http_status, nullptr, nullptr);
  return response;
}

}  // namespace conclave
