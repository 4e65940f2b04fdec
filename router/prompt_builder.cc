#include "router/prompt_builder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "router/sampling_options.h"
#include "text/json_text.h"

namespace conclave {

namespace {

// ---- validation ----

absl::Status CheckModelName(const ServedModel& model, const std::string& asked) {
  if (asked.empty() || asked == model.name) return absl::OkStatus();
  return errors::UnknownModel(asked.substr(0, limits::kMaxRequestIdBytes), model.name);
}

absl::Status CheckCount(absl::string_view what, int64_t count, int64_t most) {
  if (count <= most) return absl::OkStatus();
  return errors::OutOfRange(absl::StrCat("number of ", what), count, absl::StrCat("0..", most));
}

// Common to both kinds of request: stop strings, stop ids, bytes of text.
template <typename Request>
absl::Status CheckCommon(const ServedModel& model, const Request& request) {
  RETURN_IF_ERROR(CheckModelName(model, request.model()));
  if (const size_t bytes = TextBytes(request); bytes > limits::kMaxPromptBytes) {
    return errors::OutOfRange("size of the request's text in bytes", bytes,
                              absl::StrCat("at most ", limits::kMaxPromptBytes));
  }
  RETURN_IF_ERROR(CheckCount("stop strings", request.stop_size(), limits::kMaxStopStrings));
  for (const std::string& stop : request.stop()) {
    if (stop.empty() || stop.size() > limits::kMaxStopStringBytes) {
      return errors::OutOfRange("size of a stop string in bytes", stop.size(),
                                absl::StrCat("1..", limits::kMaxStopStringBytes));
    }
  }
  RETURN_IF_ERROR(CheckCount("stop_ids", request.stop_ids_size(),
                             limits::kMaxStopIds - static_cast<int64_t>(model.end_ids.size())));
  for (uint32_t id : request.stop_ids()) {
    if (id >= model.vocabulary().size()) {
      return errors::OutOfRange("id in stop_ids", id,
                                absl::StrCat("below ", model.vocabulary().size()));
    }
  }
  return absl::OkStatus();
}

// ---- chat ----

bool IsRole(absl::string_view role) {
  return role == "system" || role == "user" || role == "assistant" || role == "tool";
}

absl::StatusOr<ChatMessage> DecodeMessage(const v1::ChatMessage& message, int index) {
  if (!IsRole(message.role())) {
    return errors::OutOfRange(absl::StrCat("role of message ", index),
                              absl::StrCat("\"", message.role().substr(0, 64), "\""),
                              "system, user, assistant or tool");
  }
  ChatMessage out;
  out.role = message.role();
  out.content = message.content();
  if (message.has_reasoning_content()) out.reasoning_content = message.reasoning_content();
  if (message.tool_calls_size() > 0 && message.role() != "assistant") {
    return absl::InvalidArgumentError(
        absl::StrCat("message ", index, " of role ", message.role(), " has tool_calls, want none"));
  }
  RETURN_IF_ERROR(
      CheckCount("tool_calls of a message", message.tool_calls_size(), limits::kMaxTools));
  for (const v1::ToolCall& call : message.tool_calls()) {
    if (call.name().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("a tool call of message ", index, " has no name"));
    }
    absl::StatusOr<JsonValue> arguments = NormalizeArguments(call.arguments());
    if (!arguments.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("arguments of tool call ", call.name(),
                                                     " of message ", index, ": ",
                                                     arguments.status().message()));
    }
    out.tool_calls.push_back({call.name(), *std::move(arguments)});
  }
  return out;
}

// The tools' names as far as a tool_choice needs them: of {"function": {"name"}} or {"name"}.
absl::string_view ToolName(const JsonValue& tool) {
  const JsonValue* function = tool.Find("function");
  const JsonValue* name = (function != nullptr ? *function : tool).Find("name");
  return name != nullptr ? absl::string_view(name->string_value()) : absl::string_view();
}

absl::Status CheckToolChoice(const v1::ToolChoice& choice, const std::vector<JsonValue>& tools) {
  if (choice.kind() != v1::ToolChoice::REQUIRED && choice.kind() != v1::ToolChoice::NAMED) {
    return absl::OkStatus();
  }
  if (tools.empty()) return absl::InvalidArgumentError("tool_choice asks for a call without tools");
  if (choice.kind() == v1::ToolChoice::REQUIRED) return absl::OkStatus();
  for (const JsonValue& tool : tools) {
    if (!choice.name().empty() && ToolName(tool) == choice.name()) return absl::OkStatus();
  }
  return errors::OutOfRange("tool_choice's name",
                            absl::StrCat("\"", choice.name().substr(0, 64), "\""),
                            "the name of one of the tools");
}

absl::StatusOr<ChatPrompt> DecodeConversation(const v1::ChatRequest& request) {
  RETURN_IF_ERROR(CheckCount("messages", request.messages_size(), limits::kMaxMessages));
  RETURN_IF_ERROR(CheckCount("tools", request.tools_size(), limits::kMaxTools));
  if (request.messages_size() == 0) {
    return absl::InvalidArgumentError("messages is empty, want at least one");
  }
  ChatPrompt prompt;
  for (int i = 0; i < request.messages_size(); ++i) {
    ASSIGN_OR_RETURN(ChatMessage message, DecodeMessage(request.messages(i), i));
    prompt.messages.push_back(std::move(message));
  }
  for (int i = 0; i < request.tools_size(); ++i) {
    absl::StatusOr<JsonValue> tool = ParseJson(request.tools(i));
    if (!tool.ok() || !tool->is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tool ", i, " is ",
          tool.ok() ? std::string(KindName(tool->kind())) : std::string(tool.status().message()),
          ", want the JSON text of an object"));
    }
    prompt.tools.push_back(*std::move(tool));
  }
  RETURN_IF_ERROR(CheckToolChoice(request.tool_choice(), prompt.tools));
  if (request.tool_choice().kind() == v1::ToolChoice::NONE) prompt.tools.clear();
  return prompt;
}

// Sets prompt->enable_thinking to what is to be rendered.
ThinkingDecision DecideThinking(const ServedModel& model, const v1::ThinkingOptions& options,
                                ChatPrompt* prompt) {
  if (options.has_enable_thinking()) prompt->enable_thinking = options.enable_thinking();
  if (options.has_budget() && options.budget() == 0) prompt->enable_thinking = false;
  const ThinkingDecision decision =
      ResolveThinkingMode(model.template_kind, *prompt, model.default_mode);
  if (decision == ThinkingDecision{ThinkingMode::kOff, ThinkingSource::kDefault}) {
    prompt->enable_thinking = false;
  }
  return decision;
}

// ---- both ----

absl::StatusOr<int64_t> ResolveMaxTokens(bool given, int64_t max_tokens, int64_t least,
                                         int64_t prompt_tokens, int64_t max_context) {
  if (!given) {
    if (prompt_tokens >= max_context) {
      return errors::PromptTooLong(prompt_tokens, std::max<int64_t>(least, 1), max_context);
    }
    return max_context - prompt_tokens;
  }
  if (max_tokens < least) {
    return errors::OutOfRange("max_tokens", max_tokens, absl::StrCat(least, " or more"));
  }
  if (prompt_tokens + max_tokens > max_context) {
    return errors::PromptTooLong(prompt_tokens, max_tokens, max_context);
  }
  return max_tokens;
}

template <typename Request>
void FillStops(const ServedModel& model, const Request& request, PreparedRequest* prepared) {
  std::vector<uint32_t> ids(request.stop_ids().begin(), request.stop_ids().end());
  ids.insert(ids.end(), model.end_ids.begin(), model.end_ids.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  prepared->tokens.mutable_stop_ids()->Add(ids.begin(), ids.end());
  prepared->tokens.set_ignore_eos(request.ignore_eos());
  prepared->stop.assign(request.stop().begin(), request.stop().end());
}

absl::StatusOr<std::vector<uint32_t>> GeneratePromptIds(const ServedModel& model,
                                                        const v1::GenerateRequest& request) {
  std::vector<uint32_t> ids;
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText: {
      ASSIGN_OR_RETURN(ids, model.tokenizer->Encode(request.text()));
      break;
    }
    case v1::GenerateRequest::kTokenIds:
      ids.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
      break;
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return absl::InvalidArgumentError("prompt is not set, want text or token_ids");
  }
  if (ids.empty()) return absl::InvalidArgumentError("prompt has 0 tokens, want at least 1");
  for (uint32_t id : ids) {
    if (id >= model.vocabulary().size()) {
      return errors::OutOfRange("id in the prompt", id,
                                absl::StrCat("below ", model.vocabulary().size()));
    }
  }
  return ids;
}

bool EndsInsideThinking(const MarkupIds& markup, const std::vector<uint32_t>& ids) {
  if (!markup.can_think()) return false;
  for (auto id = ids.rbegin(); id != ids.rend(); ++id) {
    if (*id == markup.end_think) return false;
    if (*id == markup.think) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<PreparedRequest> PrepareChat(const ServedModel& model,
                                            const v1::ChatRequest& request, int64_t max_context) {
  RETURN_IF_ERROR(CheckCommon(model, request));
  RETURN_IF_ERROR(CheckBudget(request.thinking().has_budget() ? request.thinking().budget() : -1));
  ASSIGN_OR_RETURN(ChatPrompt prompt, DecodeConversation(request));
  const ThinkingDecision decision = DecideThinking(model, request.thinking(), &prompt);

  PreparedRequest prepared;
  ASSIGN_OR_RETURN(
      *prepared.tokens.mutable_sampling(),
      ResolveSampling(request.sampling(), ChatFallback(decision.mode, model.generation_config),
                      model.vocabulary().size()));
  ThinkingPlan plan;
  plan.expected = decision.mode == ThinkingMode::kThinking;
  plan.starts_inside = model.template_kind == TemplateKind::kThinking2507;
  ASSIGN_OR_RETURN(plan.answer_prefix_ids, AnswerPrefix(model, request.tool_choice()));
  const bool must_call = !plan.answer_prefix_ids.empty();
  if (must_call && !plan.expected) prompt.enable_thinking = false;
  ASSIGN_OR_RETURN(std::string text, RenderChat(model.template_kind, prompt));
  if (must_call && plan.expected && !plan.starts_inside) {
    // The answer has a forced beginning, so that it must be known where it begins: the block that
    // the model would open is opened for it.
    text += "<think>\n";
    plan.starts_inside = true;
  }
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, model.tokenizer->Encode(text));
  ASSIGN_OR_RETURN(const int64_t max_tokens,
                   ResolveMaxTokens(request.has_max_tokens(), request.max_tokens(), 1,
                                    static_cast<int64_t>(ids.size()), max_context));
  prepared.tokens.mutable_prompt_ids()->Add(ids.begin(), ids.end());
  prepared.tokens.set_max_tokens(static_cast<uint32_t>(max_tokens));
  RETURN_IF_ERROR(FillThinking(model, request.thinking(), plan, &prepared.tokens));
  FillStops(model, request, &prepared);
  prepared.parse_tool_calls =
      request.tools_size() > 0 && request.tool_choice().kind() != v1::ToolChoice::NONE;
  if (TextBytes(request) <= limits::kMaxPrefillAheadBytes) {
    prepared.conversation = std::move(prompt);
  }
  prepared.thinking.set_mode(ToProto(decision.mode));
  prepared.thinking.set_source(ToProto(decision.source));
  const int64_t budget = request.thinking().has_budget() ? request.thinking().budget() : -1;
  prepared.thinking.set_budget(budget);
  prepared.thinking.set_requested_budget(budget);
  return prepared;
}

absl::StatusOr<PreparedRequest> PrepareGenerate(const ServedModel& model,
                                                const v1::GenerateRequest& request,
                                                int64_t max_context) {
  RETURN_IF_ERROR(CheckCommon(model, request));
  PreparedRequest prepared;
  ASSIGN_OR_RETURN(*prepared.tokens.mutable_sampling(),
                   ResolveSampling(request.sampling(), GenerateFallback(model.generation_config),
                                   model.vocabulary().size()));
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, GeneratePromptIds(model, request));
  ASSIGN_OR_RETURN(const int64_t max_tokens,
                   ResolveMaxTokens(request.has_max_tokens(), request.max_tokens(),
                                    request.prompt_logprobs() ? 0 : 1,
                                    static_cast<int64_t>(ids.size()), max_context));
  prepared.tokens.mutable_prompt_ids()->Add(ids.begin(), ids.end());
  prepared.tokens.set_max_tokens(static_cast<uint32_t>(max_tokens));
  prepared.tokens.set_prompt_logprobs(request.prompt_logprobs());
  v1::ThinkingOptions thinking;
  thinking.set_budget(request.has_thinking_budget() ? request.thinking_budget() : -1);
  // Raw text has no answer to keep room for unless the budget asks for one.
  if (!request.has_thinking_budget()) thinking.set_answer_reserve(0);
  ThinkingPlan plan;
  plan.starts_inside = EndsInsideThinking(model.markup, ids);
  RETURN_IF_ERROR(FillThinking(model, thinking, plan, &prepared.tokens));
  FillStops(model, request, &prepared);
  prepared.thinking.set_budget(thinking.budget());
  prepared.thinking.set_requested_budget(thinking.budget());
  return prepared;
}

size_t TextBytes(const v1::ChatRequest& request) {
  size_t bytes = 0;
  for (const v1::ChatMessage& message : request.messages()) {
    bytes += message.content().size() + message.reasoning_content().size();
    for (const v1::ToolCall& call : message.tool_calls()) {
      bytes += call.name().size() + call.arguments().size();
    }
  }
  for (const std::string& tool : request.tools()) bytes += tool.size();
  return bytes + request.thinking().early_stop_text().size();
}

size_t TextBytes(const v1::GenerateRequest& request) {
  return request.text().size() + sizeof(uint32_t) * request.token_ids().ids_size();
}

absl::Status ValidateRequestId(absl::string_view request_id) {
  if (request_id.empty() || request_id.size() > limits::kMaxRequestIdBytes) {
    return errors::OutOfRange("size of request_id in bytes", request_id.size(),
                              absl::StrCat("1..", limits::kMaxRequestIdBytes));
  }
  for (char c : request_id) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c))) continue;
    if (absl::string_view("-_.:/").find(c) != absl::string_view::npos) continue;
    return absl::InvalidArgumentError(absl::StrCat("request_id holds byte ",
                                                   static_cast<int>(static_cast<unsigned char>(c)),
                                                   ", want letters, digits and -_.:/"));
  }
  return absl::OkStatus();
}

}  // namespace conclave
