#include "router/openai_chat.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/openai_messages.h"
#include "router/openai_thinking.h"
#include "router/openai_tools.h"

namespace conclave {
namespace {

constexpr int64_t kMaxUint32 = std::numeric_limits<uint32_t>::max();

absl::Status ReadMaxTokens(const OpenAiFields& body, v1::ChatRequest* request) {
  ASSIGN_OR_RETURN(const std::optional<int64_t> old, body.Integer("max_tokens", 0, kMaxUint32));
  ASSIGN_OR_RETURN(const std::optional<int64_t> given,
                   body.Integer("max_completion_tokens", 0, kMaxUint32));
  if (old.has_value() && given.has_value() && *old != *given) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_tokens is ", *old, " and max_completion_tokens is ", *given, ", want one meaning"));
  }
  const std::optional<int64_t> max_tokens = given.has_value() ? given : old;
  if (max_tokens.has_value()) request->set_max_tokens(static_cast<uint32_t>(*max_tokens));
  return absl::OkStatus();
}

absl::Status ReadLogprobs(const OpenAiFields& body, OpenAiChatRequest* request) {
  ASSIGN_OR_RETURN(const std::optional<bool> logprobs, body.Bool("logprobs"));
  ASSIGN_OR_RETURN(const std::optional<int64_t> top, body.Integer("top_logprobs", 0, kMaxUint32));
  request->answer.logprobs = logprobs.value_or(false);
  v1::SamplingOptions* sampling = request->chat.mutable_sampling();
  sampling->set_logprobs(request->answer.logprobs);
  sampling->set_top_logprobs(static_cast<uint32_t>(top.value_or(0)));
  return absl::OkStatus();
}

// Other servers' switches whose other position does not exist here.
absl::Status RefuseForChat(const OpenAiFields& body) {
  constexpr struct {
    absl::string_view key;
    bool wanted;
    absl::string_view reason;
  } kFixed[] = {
      {"separate_reasoning", true, "true: reasoning is never part of content"},
      {"add_generation_prompt", true, "true: the answer is a new message"},
      {"continue_final_message", false, "false: the answer is a new message"},
  };
  for (const auto& field : kFixed) {
    ASSIGN_OR_RETURN(const std::optional<bool> value, body.Bool(field.key));
    if (value.value_or(field.wanted) != field.wanted) {
      return WrongField(field.key, *body.Given(field.key), field.reason);
    }
  }
  return RefuseUnsupported(body);
}

}  // namespace

v1::ChatRequest OpenAiChatRequest::Choice(int i) const {
  v1::ChatRequest request = chat;
  if (request.sampling().has_seed()) {
    request.mutable_sampling()->set_seed(request.sampling().seed() + static_cast<uint64_t>(i));
  }
  return request;
}

absl::StatusOr<OpenAiChatRequest> ParseOpenAiChat(absl::string_view text) {
  ASSIGN_OR_RETURN(const JsonValue json, ParseJson(text));
  if (!json.is_object()) return WrongField("the body", json, "an object");
  const OpenAiFields body(json, "");
  OpenAiChatRequest request;
  RETURN_IF_ERROR(RefuseForChat(body));
  ASSIGN_OR_RETURN(request.answer, ReadAnswerOptions(body));
  RETURN_IF_ERROR(ReadCommon(body, &request.chat));
  RETURN_IF_ERROR(ReadMessages(body, &request.chat));
  RETURN_IF_ERROR(ReadTools(body, &request.chat));
  RETURN_IF_ERROR(ReadMaxTokens(body, &request.chat));
  RETURN_IF_ERROR(ReadSampling(body, request.chat.mutable_sampling()));
  RETURN_IF_ERROR(ReadLogprobs(body, &request));
  ASSIGN_OR_RETURN(*request.chat.mutable_thinking(), ReadThinking(body));
  ASSIGN_OR_RETURN(const std::optional<bool> parallel, body.Bool("parallel_tool_calls"));
  request.answer.one_tool_call = !parallel.value_or(true);
  return request;
}

}  // namespace conclave
