#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router/http_server.h"

namespace conclave {

// INVALID_ARGUMENT 400, NOT_FOUND 404, ALREADY_EXISTS 409, RESOURCE_EXHAUSTED 429, CANCELLED 499,
// UNAVAILABLE 503, DEADLINE_EXCEEDED 504, any other 500.
int HttpStatus(absl::StatusCode code);

// {"error":{"message","type","param","code"}}.
// - type: invalid_request_error for what the client did wrong, rate_limit_error (429), else
//   server_error.
// - param: the field, where the caller is wrong and the message reads "<field> is ...", as all of
//   openai_fields.h and errors::OutOfRange do; else null.
// - code: "context_length_exceeded", "model_not_found", "rate_limit_exceeded" or null.
std::string OpenAiErrorJson(const absl::Status& status);

// The whole response. 429 and 503 have Retry-After: retry_after in whole seconds, at least 1.
HttpResponse OpenAiErrorResponse(const absl::Status& status,
                                 absl::Duration retry_after = absl::Seconds(1));

// For errors of HTTP itself that no status code stands for, as 405 and 413. Same shape.
HttpResponse OpenAiHttpError(int http_status, absl::string_view message);

}  // namespace conclave
