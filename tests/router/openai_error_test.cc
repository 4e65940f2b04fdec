#include "router/openai_error.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "common/errors.h"
#include "nlohmann/json.hpp"
#include "router/openai_stream.h"

namespace conclave {
namespace {

using Json = nlohmann::json;

Json ErrorOf(const absl::Status& status) { return Json::parse(OpenAiErrorJson(status))["error"]; }

struct CodeCase {
  absl::StatusCode code;
  int http_status;
  std::string type;
};

TEST(OpenAiErrorTest, GivesEveryCodeItsHttpStatusAndType) {
  const std::vector<CodeCase> cases = {
      {absl::StatusCode::kInvalidArgument, 400, "invalid_request_error"},
      {absl::StatusCode::kNotFound, 404, "invalid_request_error"},
      {absl::StatusCode::kAlreadyExists, 409, "invalid_request_error"},
      {absl::StatusCode::kResourceExhausted, 429, "rate_limit_error"},
      {absl::StatusCode::kCancelled, 499, "invalid_request_error"},
      {absl::StatusCode::kUnavailable, 503, "server_error"},
      {absl::StatusCode::kDeadlineExceeded, 504, "server_error"},
      {absl::StatusCode::kInternal, 500, "server_error"},
      {absl::StatusCode::kDataLoss, 500, "server_error"},
      {absl::StatusCode::kUnknown, 500, "server_error"},
      {absl::StatusCode::kFailedPrecondition, 500, "server_error"},
  };
  for (const CodeCase& c : cases) {
    const HttpResponse response = OpenAiErrorResponse(absl::Status(c.code, "it broke"));
    EXPECT_EQ(response.status, c.http_status);
    EXPECT_EQ(response.content_type, "application/json");
    const Json error = Json::parse(response.body)["error"];
    EXPECT_EQ(error["message"], "it broke");
    EXPECT_EQ(error["type"], c.type);
    EXPECT_EQ(error["param"], nullptr);
    EXPECT_EQ(response.headers.empty(), c.http_status != 429 && c.http_status != 503);
  }
}

TEST(OpenAiErrorTest, SaysWhenToComeBackInWholeSeconds) {
  using Headers = std::vector<std::pair<std::string, std::string>>;
  const auto headers = [](const absl::Status& status, absl::Duration wait) {
    return OpenAiErrorResponse(status, wait).headers;
  };
  const absl::Status full = errors::Overloaded("admission", 5);
  EXPECT_EQ(headers(full, absl::Milliseconds(10)), (Headers{{"Retry-After", "1"}}));
  EXPECT_EQ(headers(full, absl::ZeroDuration()), (Headers{{"Retry-After", "1"}}));
  EXPECT_EQ(headers(full, absl::Milliseconds(2001)), (Headers{{"Retry-After", "3"}}));
  EXPECT_EQ(headers(errors::NoWorker(2), absl::Seconds(4)), (Headers{{"Retry-After", "4"}}));
  EXPECT_EQ(ErrorOf(full)["code"], "rate_limit_exceeded");
}

TEST(OpenAiErrorTest, NamesTheFieldAsParam) {
  const auto param = [](absl::string_view message) {
    return ErrorOf(absl::InvalidArgumentError(message))["param"];
  };
  EXPECT_EQ(param("messages[2].content is a number, want a string"), "messages[2].content");
  EXPECT_EQ(param("temperature is 3, want 0..2"), "temperature");
  EXPECT_EQ(param("max_tokens is 1 and max_completion_tokens is 2, want one meaning"),
            "max_tokens");
  EXPECT_EQ(param("prompt is missing, want a string"), "prompt");
  EXPECT_EQ(param("bad JSON at byte 3: found 'x', want a value"), nullptr);
  EXPECT_EQ(param("the body is an array, want an object"), nullptr);
  EXPECT_EQ(param("\"x\" is what?"), nullptr);
  EXPECT_EQ(param("nothing"), nullptr);
  EXPECT_EQ(param(""), nullptr);
  EXPECT_EQ(ErrorOf(absl::InternalError("engine is down"))["param"], nullptr);
}

TEST(OpenAiErrorTest, HasTheCodesThatClientsLookFor) {
  const Json model = ErrorOf(errors::UnknownModel("gpt", "qwen"));
  EXPECT_EQ(model["code"], "model_not_found");
  EXPECT_EQ(model["param"], "model");
  EXPECT_EQ(ErrorOf(absl::NotFoundError("request x has finished"))["code"], nullptr);
  const Json context = ErrorOf(errors::PromptTooLong(10, 5, 12));
  EXPECT_EQ(context["code"], "context_length_exceeded");
  EXPECT_NE(context["message"].get<std::string>().find("maximum context length"),
            std::string::npos);
  EXPECT_EQ(ErrorOf(absl::InvalidArgumentError("n is 0, want 1"))["code"], nullptr);
}

TEST(OpenAiErrorTest, WritesErrorsOfHttpInTheSameShape) {
  const HttpResponse response = OpenAiHttpError(405, "method is PUT, want POST");
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.body,
            R"({"error":{"message":"method is PUT, want POST","type":"invalid_request_error",)"
            R"("param":null,"code":null}})");
}

TEST(OpenAiErrorTest, WritesAFrameInsideAStream) {
  EXPECT_EQ(OpenAiErrorFrame(absl::UnavailableError("worker lost")),
            "data: {\"error\":{\"message\":\"worker lost\",\"type\":\"server_error\","
            "\"param\":null,\"code\":null}}\n\n");
}

TEST(OpenAiErrorTest, StaysJsonWhateverTheMessageHolds) {
  EXPECT_EQ(ErrorOf(absl::InternalError("\xff \"\n"))["message"], "\xEF\xBF\xBD \"\n");
}

}  // namespace
}  // namespace conclave
