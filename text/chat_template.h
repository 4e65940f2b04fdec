#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "text/json_text.h"

namespace conclave {

enum class TemplateKind {
  kQwen3,         // April 2025: one model thinks or not; enable_thinking=false closes thinking
  kInstruct2507,  // never thinks; knows nothing of <think>
  kThinking2507,  // always thinks: the prompt ends inside <think>
};

// "qwen3", "qwen3-instruct-2507", "qwen3-thinking-2507": the values of --chat_template.
absl::string_view TemplateKindName(TemplateKind kind);
// InvalidArgument listing the names.
absl::StatusOr<TemplateKind> ParseTemplateKind(absl::string_view name);

// Which of them a checkpoint's own template is: chat_template.jinja if there is one, else
// "chat_template" of tokenizer_config.json. Both texts released for April 2025's models are known
// by a hash of the text without whitespace. A 2507 template is known by what it does: every
// literal string in it is one of April's, it does not mention enable_thinking, and it either
// writes "<|im_start|>assistant\n<think>\n" to start an answer (Thinking) or knows nothing of
// "think" at all (Instruct).
// FailedPrecondition for any other template, naming the flag that overrides; NotFound if the
// checkpoint has none; DataLoss if the file is broken.
absl::StatusOr<TemplateKind> DetectTemplate(const std::string& model_dir);
// The same for the text of a template.
absl::StatusOr<TemplateKind> RecognizeTemplate(absl::string_view jinja);

struct ToolCall {
  std::string name;
  // A string is written as it is; clients' strings become objects in NormalizeArguments.
  JsonValue arguments;
};

struct ChatMessage {
  std::string role;  // system, user, assistant, tool; messages of any other role vanish
  std::string content;
  // Given (even empty): content is not searched for <think>. Not given: it is.
  std::optional<std::string> reasoning_content;
  std::vector<ToolCall> tool_calls;
};

struct ChatPrompt {
  std::vector<ChatMessage> messages;
  std::vector<JsonValue> tools;         // each as the client wrote it
  std::optional<bool> enable_thinking;  // of kQwen3 only; not given is as true
  bool add_generation_prompt = true;
};

// The text of a message's "content": null (or none) is "", a list of text parts is joined with
// "\n". InvalidArgument for another type and for parts that are not text.
absl::StatusOr<std::string> NormalizeContent(const JsonValue* content);

// What clients send as a call's "arguments" to what models were trained on: a JSON string becomes
// the value it holds; null, "", [], 0 and false become {}; any other value stays. InvalidArgument
// for a string that is not JSON.
absl::StatusOr<JsonValue> NormalizeArguments(const JsonValue& arguments);
absl::StatusOr<JsonValue> NormalizeArguments(absl::string_view json_text);

enum class ArgumentStrings {
  kParse,     // NormalizeArguments: what a server does
  kVerbatim,  // a string is kept and written as it is: what the bare template does
};

// A prompt from OpenAI-style JSON {"messages", "tools", "enable_thinking",
// "add_generation_prompt"}; null is as not given; unknown keys are ignored.
// InvalidArgument naming the field, what it is and what it should be.
absl::StatusOr<ChatPrompt> ParseChatPrompt(
    absl::string_view json_text, ArgumentStrings argument_strings = ArgumentStrings::kParse);

// The prompt's text, byte for byte what the released template prints under transformers.
// InvalidArgument where the template raises: there are no messages.
absl::StatusOr<std::string> RenderChat(TemplateKind kind, const ChatPrompt& prompt);

// Whether a user turn is nothing but a tool's response, which then starts no new query.
bool IsToolResponseText(absl::string_view content);

}  // namespace conclave
