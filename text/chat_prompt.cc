// From clients' JSON to a ChatPrompt: the clean-up that servers do before the template.
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/chat_template.h"

namespace conclave {
namespace {

// The member unless it is missing or null.
const JsonValue* Given(const JsonValue& object, absl::string_view key) {
  const JsonValue* value = object.Find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

absl::Status WrongKind(absl::string_view field, const JsonValue& value, absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", KindName(value.kind()), ", want ", wanted));
}

// The status of a part, whose message starts with a field's name or, about the part itself, with a
// space.
absl::Status Within(absl::string_view field, const absl::Status& status) {
  const absl::string_view message = status.message();
  const absl::string_view separator = absl::StartsWith(message, " ") ? "" : ".";
  return absl::Status(status.code(), absl::StrCat(field, separator, message));
}

// As Python sees it.
bool IsFalsy(const JsonValue& value) {
  switch (value.kind()) {
    case JsonValue::Kind::kNull:
      return true;
    case JsonValue::Kind::kBool:
      return !value.bool_value();
    case JsonValue::Kind::kNumber: {
      const std::string& spelling = value.number_spelling();
      return spelling.find_first_of("123456789") >= spelling.find_first_of("eE");
    }
    case JsonValue::Kind::kString:
      return value.string_value().empty();
    case JsonValue::Kind::kArray:
      return value.items().empty();
    case JsonValue::Kind::kObject:
      return value.members().empty();
  }
  return false;
}

absl::StatusOr<ToolCall> ParseToolCall(const JsonValue& item, ArgumentStrings argument_strings) {
  if (!item.is_object()) return WrongKind("", item, "an object");
  const JsonValue* function = Given(item, "function");
  if (function == nullptr || IsFalsy(*function)) function = &item;
  if (!function->is_object()) return WrongKind("function", *function, "an object");
  const JsonValue* name = Given(*function, "name");
  if (name == nullptr) return absl::InvalidArgumentError("function.name is missing, want a string");
  if (!name->is_string()) return WrongKind("function.name", *name, "a string");
  ToolCall call;
  call.name = name->string_value();
  const JsonValue* arguments = function->Find("arguments");
  if (argument_strings == ArgumentStrings::kVerbatim) {
    if (arguments != nullptr) call.arguments = *arguments;
  } else {
    ASSIGN_OR_RETURN(call.arguments,
                     NormalizeArguments(arguments != nullptr ? *arguments : JsonValue()));
  }
  return call;
}

absl::StatusOr<ChatMessage> ParseMessage(const JsonValue& item, ArgumentStrings argument_strings) {
  if (!item.is_object()) return WrongKind("", item, "an object");
  ChatMessage message;
  const JsonValue* role = item.Find("role");
  if (role == nullptr) return absl::InvalidArgumentError("role is missing, want a string");
  if (!role->is_string()) return WrongKind("role", *role, "a string");
  message.role = role->string_value();
  ASSIGN_OR_RETURN(message.content, NormalizeContent(item.Find("content")));
  if (const JsonValue* reasoning = Given(item, "reasoning_content"); reasoning != nullptr) {
    if (!reasoning->is_string()) return WrongKind("reasoning_content", *reasoning, "a string");
    message.reasoning_content = reasoning->string_value();
  }
  const JsonValue* calls = Given(item, "tool_calls");
  if (message.role != "assistant" || calls == nullptr) return message;
  if (!calls->is_array()) return WrongKind("tool_calls", *calls, "an array");
  for (const JsonValue& call : calls->items()) {
    absl::StatusOr<ToolCall> parsed = ParseToolCall(call, argument_strings);
    if (!parsed.ok()) {
      return Within(absl::StrCat("tool_calls[", message.tool_calls.size(), "]"), parsed.status());
    }
    message.tool_calls.push_back(*std::move(parsed));
  }
  return message;
}

// nullopt if the field is missing or null.
absl::StatusOr<std::optional<bool>> ParseFlag(const JsonValue& root, absl::string_view key) {
  const JsonValue* value = Given(root, key);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_bool()) return WrongKind(key, *value, "true, false or null");
  return std::optional<bool>(value->bool_value());
}

}  // namespace

absl::StatusOr<std::string> NormalizeContent(const JsonValue* content) {
  if (content == nullptr || content->is_null()) return std::string();
  if (content->is_string()) return content->string_value();
  if (!content->is_array()) return WrongKind("content", *content, "a string or an array of parts");
  std::string text;
  for (size_t i = 0; i < content->items().size(); ++i) {
    const JsonValue& part = content->items()[i];
    const JsonValue* part_text = &part;  // clients may leave out the object around a text
    if (!part.is_string()) {
      const JsonValue* type = part.Find("type");
      if (type == nullptr || type->string_value() != "text") {
        return absl::InvalidArgumentError(absl::StrCat("content[", i, "].type is ",
                                                       type == nullptr ? "missing" : ToJson(*type),
                                                       ", want \"text\""));
      }
      part_text = part.Find("text");
      if (part_text == nullptr || !part_text->is_string()) {
        return WrongKind(absl::StrCat("content[", i, "].text"),
                         part_text == nullptr ? JsonValue() : *part_text, "a string");
      }
    }
    if (i > 0) text.append("\n");
    text.append(part_text->string_value());
  }
  return text;
}

absl::StatusOr<JsonValue> NormalizeArguments(absl::string_view json_text) {
  if (json_text.empty()) return JsonValue::MakeObject({});
  absl::StatusOr<JsonValue> parsed = ParseJson(json_text);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("function.arguments: ", parsed.status().message()));
  }
  return parsed;
}

absl::StatusOr<JsonValue> NormalizeArguments(const JsonValue& arguments) {
  if (arguments.is_string()) return NormalizeArguments(arguments.string_value());
  return IsFalsy(arguments) ? JsonValue::MakeObject({}) : arguments;
}

absl::StatusOr<ChatPrompt> ParseChatPrompt(absl::string_view json_text,
                                           ArgumentStrings argument_strings) {
  ASSIGN_OR_RETURN(const JsonValue root, ParseJson(json_text));
  if (!root.is_object()) return WrongKind("the request", root, "an object");
  const JsonValue* messages = Given(root, "messages");
  if (messages == nullptr) return absl::InvalidArgumentError("messages is missing, want an array");
  if (!messages->is_array()) return WrongKind("messages", *messages, "an array");
  ChatPrompt prompt;
  for (const JsonValue& item : messages->items()) {
    absl::StatusOr<ChatMessage> message = ParseMessage(item, argument_strings);
    if (!message.ok()) {
      return Within(absl::StrCat("messages[", prompt.messages.size(), "]"), message.status());
    }
    prompt.messages.push_back(*std::move(message));
  }
  if (const JsonValue* tools = Given(root, "tools"); tools != nullptr) {
    if (!tools->is_array()) return WrongKind("tools", *tools, "an array");
    prompt.tools = tools->items();
  }
  ASSIGN_OR_RETURN(prompt.enable_thinking, ParseFlag(root, "enable_thinking"));
  ASSIGN_OR_RETURN(const std::optional<bool> add_prompt, ParseFlag(root, "add_generation_prompt"));
  prompt.add_generation_prompt = add_prompt.value_or(true);
  return prompt;
}

}  // namespace conclave
