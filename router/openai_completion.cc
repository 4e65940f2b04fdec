#include "router/openai_completion.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "router/openai_thinking.h"

namespace conclave {
namespace {

constexpr int64_t kMaxUint32 = std::numeric_limits<uint32_t>::max();
constexpr uint32_t kDefaultMaxTokens = 16;

absl::Status SetIds(absl::string_view path, const JsonValue& array, v1::GenerateRequest* request) {
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, ReadIds(path, array));
  request->mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  return absl::OkStatus();
}

// One request per prompt, each with nothing but its prompt.
absl::StatusOr<std::vector<v1::GenerateRequest>> ReadPrompts(const OpenAiFields& body, int n) {
  const JsonValue* prompt = body.Given("prompt");
  if (prompt == nullptr) return MissingField("prompt", "a string or a list");
  std::vector<v1::GenerateRequest> prompts(1);
  if (prompt->is_string()) {
    prompts[0].set_text(prompt->string_value());
    return prompts;
  }
  const JsonValue::Array& items = prompt->items();
  if (!prompt->is_array()) {
    return WrongField("prompt", *prompt, "a string, a list of token ids or a list of either");
  }
  if (items.empty()) return errors::OutOfRange("prompt", "an empty list", "at least one item");
  if (items[0].is_number()) {
    RETURN_IF_ERROR(SetIds("prompt", *prompt, &prompts[0]));
    return prompts;
  }
  if (items.size() * static_cast<size_t>(n) > limits::kMaxHttpChoices) {
    return errors::OutOfRange("prompt", absl::StrCat("a list of ", items.size()),
                              absl::StrCat("at most ", limits::kMaxHttpChoices / n, " with n ", n));
  }
  prompts.resize(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    const std::string path = absl::StrCat("prompt[", i, "]");
    if (items[i].is_string()) {
      prompts[i].set_text(items[i].string_value());
    } else if (items[i].is_array()) {
      RETURN_IF_ERROR(SetIds(path, items[i], &prompts[i]));
    } else {
      return WrongField(path, items[i], "a string or a list of token ids");
    }
  }
  return prompts;
}

absl::Status RefuseForCompletion(const OpenAiFields& body, const OpenAiCompletionRequest& request) {
  RETURN_IF_ERROR(RefuseUnsupported(body));
  ASSIGN_OR_RETURN(const std::optional<std::string> suffix, body.String("suffix"));
  if (suffix.has_value() && !suffix->empty()) {
    return WrongField("suffix", *body.Given("suffix"), "none: Qwen3 cannot fill a gap");
  }
  ASSIGN_OR_RETURN(const std::optional<int64_t> best_of, body.Integer("best_of"));
  if (best_of.has_value() && *best_of != request.answer.n) {
    return errors::OutOfRange("best_of", *best_of, absl::StrCat(request.answer.n, ", as n"));
  }
  if (request.echo && request.answer.logprobs) {
    return absl::InvalidArgumentError(
        "logprobs is given and echo is true, want one of them: there are none of the prompt");
  }
  return absl::OkStatus();
}

absl::Status ReadThinkingBudget(const OpenAiFields& body, v1::GenerateRequest* request) {
  ASSIGN_OR_RETURN(const v1::ThinkingOptions thinking, ReadThinking(body));
  if (thinking.has_enable_thinking()) {
    return errors::OutOfRange("enable_thinking", thinking.enable_thinking() ? "true" : "false",
                              "none: a raw prompt has no thinking switch");
  }
  if (thinking.has_answer_reserve()) {
    return errors::OutOfRange("answer_reserve", thinking.answer_reserve(),
                              "none: it is for chat completions");
  }
  if (thinking.has_early_stop_text()) {
    return absl::InvalidArgumentError(
        "early_stop_text is given, want none: it is for chat completions");
  }
  if (thinking.has_budget()) request->set_thinking_budget(thinking.budget());
  return absl::OkStatus();
}

// All but the prompt.
absl::StatusOr<v1::GenerateRequest> ReadRequest(const OpenAiFields& body,
                                                OpenAiAnswerOptions* answer) {
  v1::GenerateRequest request;
  RETURN_IF_ERROR(ReadCommon(body, &request));
  RETURN_IF_ERROR(ReadSampling(body, request.mutable_sampling()));
  ASSIGN_OR_RETURN(const std::optional<int64_t> logprobs,
                   body.Integer("logprobs", 0, limits::kMaxTopLogprobs));
  answer->logprobs = logprobs.has_value();
  request.mutable_sampling()->set_logprobs(answer->logprobs);
  request.mutable_sampling()->set_top_logprobs(static_cast<uint32_t>(logprobs.value_or(0)));
  ASSIGN_OR_RETURN(const std::optional<int64_t> max_tokens,
                   body.Integer("max_tokens", 0, kMaxUint32));
  request.set_max_tokens(static_cast<uint32_t>(max_tokens.value_or(kDefaultMaxTokens)));
  RETURN_IF_ERROR(ReadThinkingBudget(body, &request));
  return request;
}

}  // namespace

v1::GenerateRequest OpenAiCompletionRequest::Choice(int i) const {
  v1::GenerateRequest request = prompts[static_cast<size_t>(i / answer.n)];
  if (request.sampling().has_seed()) {
    request.mutable_sampling()->set_seed(request.sampling().seed() +
                                         static_cast<uint64_t>(i % answer.n));
  }
  return request;
}

absl::StatusOr<OpenAiCompletionRequest> ParseOpenAiCompletion(absl::string_view text) {
  ASSIGN_OR_RETURN(const JsonValue json, ParseJson(text));
  if (!json.is_object()) return WrongField("the body", json, "an object");
  const OpenAiFields body(json, "");
  OpenAiCompletionRequest request;
  ASSIGN_OR_RETURN(request.answer, ReadAnswerOptions(body));
  ASSIGN_OR_RETURN(const std::optional<bool> echo, body.Bool("echo"));
  request.echo = echo.value_or(false);
  ASSIGN_OR_RETURN(const v1::GenerateRequest common, ReadRequest(body, &request.answer));
  RETURN_IF_ERROR(RefuseForCompletion(body, request));
  ASSIGN_OR_RETURN(request.prompts, ReadPrompts(body, request.answer.n));
  for (v1::GenerateRequest& prompt : request.prompts) prompt.MergeFrom(common);
  return request;
}

}  // namespace conclave
