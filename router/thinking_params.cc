#include "router/thinking_params.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "text/json_text.h"

namespace conclave {

const char kDefaultEarlyStopText[] =
    "\n\nConsidering the limited time by the user, I have to give the solution based on the "
    "thinking directly now.\n</think>\n\n";
const char kShortEarlyStopText[] = "\n</think>\n\n";

namespace {

constexpr int64_t kMaxDefaultReserve = 256;
constexpr char kAnswerSeparator[] = "\n\n";  // between </think> and the answer

absl::StatusOr<std::vector<uint32_t>> EncodeEarlyStop(const ServedModel& model,
                                                      absl::string_view text) {
  ASSIGN_OR_RETURN(std::vector<uint32_t> ids, model.tokenizer->Encode(text));
  if (ids.size() > limits::kMaxForcedIds) {
    return errors::OutOfRange("size of early_stop_text in tokens", ids.size(),
                              absl::StrCat("at most ", limits::kMaxForcedIds));
  }
  if (std::count(ids.begin(), ids.end(), model.markup.end_think) != 1) {
    return absl::InvalidArgumentError("early_stop_text does not hold </think> exactly once");
  }
  for (uint32_t id : ids) {
    if (id == model.markup.think || model.vocabulary().IsSpecial(id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("early_stop_text holds the control token ", model.vocabulary().Bytes(id)));
    }
  }
  return ids;
}

absl::StatusOr<std::vector<uint32_t>> EarlyStopIds(const ServedModel& model,
                                                   const v1::ThinkingOptions& options,
                                                   int64_t max_tokens) {
  if (options.has_early_stop_text()) return EncodeEarlyStop(model, options.early_stop_text());
  ASSIGN_OR_RETURN(std::vector<uint32_t> ids, EncodeEarlyStop(model, kDefaultEarlyStopText));
  if (max_tokens >= 4 * static_cast<int64_t>(ids.size())) return ids;
  return EncodeEarlyStop(model, kShortEarlyStopText);
}

// `num_forced`: ids between thinking and the answer's first own one.
absl::Status CheckRoom(const v1::ThinkingOptions& options, bool expected, int64_t max_tokens,
                       int64_t num_forced) {
  if (options.has_answer_reserve() && options.answer_reserve() > 0 &&
      options.answer_reserve() + num_forced >= max_tokens) {
    return errors::OutOfRange(
        "answer_reserve", options.answer_reserve(),
        absl::StrCat("below ", std::max<int64_t>(0, max_tokens - num_forced), ": max_tokens ",
                     max_tokens, " less the ", num_forced, " ids that end thinking"));
  }
  const bool waived = options.has_answer_reserve() && options.answer_reserve() == 0;
  const int64_t least = num_forced + 2;  // <think>, and one id of the answer
  if (expected && !waived && max_tokens < least) {
    return errors::OutOfRange(
        "max_tokens", max_tokens,
        absl::StrCat(least, " or more with thinking on: ", num_forced,
                     " ids end thinking, and an answer must follow; or turn thinking off"));
  }
  return absl::OkStatus();
}

int64_t AnswerReserve(const v1::ThinkingOptions& options, int64_t max_tokens, int64_t num_forced) {
  if (options.has_answer_reserve()) return options.answer_reserve();
  const int64_t left = max_tokens - num_forced;
  return left < 1 ? 0 : std::clamp<int64_t>(left / 4, 1, kMaxDefaultReserve);
}

}  // namespace

absl::Status CheckBudget(int64_t budget) {
  if (budget >= -1) return absl::OkStatus();
  return errors::OutOfRange("thinking budget", budget, "-1 (no limit) or more");
}

absl::Status FillThinking(const ServedModel& model, const v1::ThinkingOptions& options,
                          const ThinkingPlan& plan, v1::TokenRequest* tokens) {
  RETURN_IF_ERROR(CheckBudget(options.has_budget() ? options.budget() : -1));
  if (!model.markup.can_think()) return absl::OkStatus();
  v1::ThinkingParams* thinking = tokens->mutable_thinking();
  const int64_t max_tokens = tokens->max_tokens();
  ASSIGN_OR_RETURN(const std::vector<uint32_t> early_stop,
                   EarlyStopIds(model, options, max_tokens));
  const auto num_forced = static_cast<int64_t>(early_stop.size() + plan.answer_prefix_ids.size());
  RETURN_IF_ERROR(CheckRoom(options, plan.expected, max_tokens, num_forced));
  thinking->set_enabled(true);
  thinking->set_start_id(model.markup.think);
  thinking->set_end_id(model.markup.end_think);
  thinking->set_budget(options.has_budget() ? options.budget() : -1);
  thinking->mutable_forced_ids()->Add(early_stop.begin(), early_stop.end());
  thinking->set_answer_reserve(AnswerReserve(options, max_tokens, num_forced));
  thinking->set_starts_inside(plan.starts_inside);
  thinking->set_tool_call_start_id(model.markup.tool_call);
  thinking->set_tool_call_end_id(model.markup.end_tool_call);
  if (!plan.answer_prefix_ids.empty()) {
    ASSIGN_OR_RETURN(const std::vector<uint32_t> separator,
                     model.tokenizer->Encode(kAnswerSeparator));
    thinking->mutable_answer_separator_ids()->Add(separator.begin(), separator.end());
    thinking->mutable_answer_prefix_ids()->Add(plan.answer_prefix_ids.begin(),
                                               plan.answer_prefix_ids.end());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint32_t>> AnswerPrefix(const ServedModel& model,
                                                   const v1::ToolChoice& choice) {
  std::string text;
  if (choice.kind() == v1::ToolChoice::REQUIRED) {
    text = "<tool_call>\n{\"name\": \"";
  } else if (choice.kind() == v1::ToolChoice::NAMED) {
    text = absl::StrCat("<tool_call>\n{\"name\": ", ToJson(JsonValue::String(choice.name())),
                        ", \"arguments\":");
  } else {
    return std::vector<uint32_t>();
  }
  if (!model.markup.can_think() || model.markup.tool_call == 0) {
    return absl::InvalidArgumentError(
        "tool_choice asks for a call, but the model's vocabulary has no <tool_call>");
  }
  ASSIGN_OR_RETURN(std::vector<uint32_t> ids, model.tokenizer->Encode(text));
  if (ids.size() > limits::kMaxForcedIds) {
    return errors::OutOfRange("size of tool_choice's name in tokens", ids.size(),
                              absl::StrCat("at most ", limits::kMaxForcedIds));
  }
  return ids;
}

}  // namespace conclave
