#include "text/chat_template.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace conclave {
namespace {

constexpr absl::string_view kToolsHeader =
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
constexpr absl::string_view kToolsFooter =
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    "{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n";

absl::string_view StripLeadingNewlines(absl::string_view text) {
  while (absl::ConsumePrefix(&text, "\n")) {
  }
  return text;
}

absl::string_view StripTrailingNewlines(absl::string_view text) {
  while (absl::ConsumeSuffix(&text, "\n")) {
  }
  return text;
}

void AppendSystem(const ChatPrompt& prompt, std::string* out) {
  const ChatMessage& first = prompt.messages[0];
  const bool has_system = first.role == "system";
  if (!prompt.tools.empty()) {
    out->append("<|im_start|>system\n");
    if (has_system) absl::StrAppend(out, first.content, "\n\n");
    absl::StrAppend(out, kToolsHeader);
    for (const JsonValue& tool : prompt.tools) absl::StrAppend(out, "\n", ToJson(tool));
    absl::StrAppend(out, kToolsFooter);
  } else if (has_system) {
    absl::StrAppend(out, "<|im_start|>system\n", first.content, "<|im_end|>\n");
  }
}

// The user message that the model answers. If there is none: the last message.
size_t LastQueryIndex(const std::vector<ChatMessage>& messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    if (messages[i].role == "user" && !IsToolResponseText(messages[i].content)) return i;
  }
  return messages.size() - 1;
}

struct AssistantText {
  absl::string_view reasoning;
  absl::string_view content;
};

// Text written inline comes apart as the template does it: the reasoning is what is between the
// first </think> and the last <think> before it; the content is what is after the last </think>.
AssistantText SplitReasoning(const ChatMessage& message) {
  constexpr absl::string_view kOpen = "<think>", kClose = "</think>";
  const absl::string_view text = message.content;
  if (message.reasoning_content.has_value()) return {*message.reasoning_content, text};
  const size_t first_close = text.find(kClose);
  if (first_close == absl::string_view::npos) return {"", text};
  absl::string_view reasoning = StripTrailingNewlines(text.substr(0, first_close));
  const size_t last_open = reasoning.rfind(kOpen);
  if (last_open != absl::string_view::npos) reasoning.remove_prefix(last_open + kOpen.size());
  const size_t after = text.rfind(kClose) + kClose.size();
  return {StripLeadingNewlines(reasoning), StripLeadingNewlines(text.substr(after))};
}

void AppendToolCalls(const std::vector<ToolCall>& calls, bool after_text, std::string* out) {
  for (const ToolCall& call : calls) {
    if (after_text) out->append("\n");
    after_text = true;
    absl::StrAppend(
        out, "<tool_call>\n{\"name\": \"", call.name, "\", \"arguments\": ",
        call.arguments.is_string() ? call.arguments.string_value() : ToJson(call.arguments),
        "}\n</tool_call>");
  }
}

void AppendAssistant(TemplateKind kind, const ChatMessage& message, bool after_query, bool is_last,
                     std::string* out) {
  const AssistantText text = kind == TemplateKind::kInstruct2507
                                 ? AssistantText{"", message.content}
                                 : SplitReasoning(message);
  out->append("<|im_start|>assistant\n");
  if (kind != TemplateKind::kInstruct2507 && after_query && (is_last || !text.reasoning.empty())) {
    absl::StrAppend(out, "<think>\n", StripLeadingNewlines(StripTrailingNewlines(text.reasoning)),
                    "\n</think>\n\n", StripLeadingNewlines(text.content));
  } else {
    absl::StrAppend(out, text.content);
  }
  AppendToolCalls(message.tool_calls, !text.content.empty(), out);
  out->append("<|im_end|>\n");
}

}  // namespace

absl::string_view TemplateKindName(TemplateKind kind) {
  switch (kind) {
    case TemplateKind::kQwen3:
      return "qwen3";
    case TemplateKind::kInstruct2507:
      return "qwen3-instruct-2507";
    case TemplateKind::kThinking2507:
      return "qwen3-thinking-2507";
  }
  return "";
}

absl::StatusOr<TemplateKind> ParseTemplateKind(absl::string_view name) {
  for (const TemplateKind kind :
       {TemplateKind::kQwen3, TemplateKind::kInstruct2507, TemplateKind::kThinking2507}) {
    if (TemplateKindName(kind) == name) return kind;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "chat_template is \"", name, "\", want qwen3, qwen3-instruct-2507 or qwen3-thinking-2507"));
}

bool IsToolResponseText(absl::string_view content) {
  return absl::StartsWith(content, "<tool_response>") &&
         absl::EndsWith(content, "</tool_response>");
}

absl::StatusOr<std::string> RenderChat(TemplateKind kind, const ChatPrompt& prompt) {
  const std::vector<ChatMessage>& messages = prompt.messages;
  if (messages.empty()) return absl::InvalidArgumentError("messages is empty, want one or more");
  std::string out;
  AppendSystem(prompt, &out);
  const size_t last_query_index = LastQueryIndex(messages);
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const bool is_last = i + 1 == messages.size();
    if (message.role == "user" || (message.role == "system" && i > 0)) {
      absl::StrAppend(&out, "<|im_start|>", message.role, "\n", message.content, "<|im_end|>\n");
    } else if (message.role == "assistant") {
      AppendAssistant(kind, message, i > last_query_index, is_last, &out);
    } else if (message.role == "tool") {  // neighbours share one user turn
      if (i == 0 || messages[i - 1].role != "tool") out.append("<|im_start|>user");
      absl::StrAppend(&out, "\n<tool_response>\n", message.content, "\n</tool_response>");
      if (is_last || messages[i + 1].role != "tool") out.append("<|im_end|>\n");
    }
  }
  if (prompt.add_generation_prompt) {
    out.append("<|im_start|>assistant\n");
    if (kind == TemplateKind::kThinking2507) out.append("<think>\n");
    if (kind == TemplateKind::kQwen3 && prompt.enable_thinking == false) {
      out.append("<think>\n\n</think>\n\n");
    }
  }
  return out;
}

}  // namespace conclave
