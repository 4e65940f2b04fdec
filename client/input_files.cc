#include "client/input_files.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "text/chat_template.h"
#include "text/json_text.h"

namespace conclave {
namespace {

constexpr std::array<absl::string_view, 4> kRoles = {"system", "user", "assistant", "tool"};

absl::Status Wrong(absl::string_view where, absl::string_view found, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat(where, " is ", found, ", want ", wanted));
}

absl::string_view KindOf(const JsonValue* value) {
  return value == nullptr ? "missing" : KindName(value->kind());
}

// The list that a whole file holds.
absl::StatusOr<JsonValue> ParseList(absl::string_view json, absl::string_view what) {
  absl::StatusOr<JsonValue> value = ParseJson(json);
  if (!value.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": ", value.status().message()));
  }
  if (!value->is_array()) return Wrong(what, KindName(value->kind()), "a JSON list");
  return value;
}

// A member that may be left out or null; otherwise it must be a string.
absl::StatusOr<std::optional<std::string>> OptionalString(const JsonValue& object,
                                                          absl::string_view key,
                                                          absl::string_view where) {
  const JsonValue* value = object.Find(key);
  if (value == nullptr || value->is_null()) return std::nullopt;
  if (!value->is_string()) {
    return Wrong(absl::StrCat(where, ".", key), KindName(value->kind()), "a string");
  }
  return value->string_value();
}

absl::Status ParseToolCall(const JsonValue& value, const std::string& where, v1::ToolCall* call) {
  if (!value.is_object()) return Wrong(where, KindName(value.kind()), "an object");
  const JsonValue* function = value.Find("function");
  if (function == nullptr || !function->is_object()) {
    return Wrong(where + ".function", KindOf(function), "an object");
  }
  const JsonValue* name = function->Find("name");
  if (name == nullptr || !name->is_string()) {
    return Wrong(where + ".function.name", KindOf(name), "a string");
  }
  call->set_name(name->string_value());
  ASSIGN_OR_RETURN(const std::optional<std::string> id, OptionalString(value, "id", where));
  if (id) call->set_id(*id);
  const JsonValue* arguments = function->Find("arguments");
  const absl::StatusOr<JsonValue> normal =
      NormalizeArguments(arguments == nullptr ? JsonValue() : *arguments);
  if (!normal.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ".function.arguments: ", normal.status().message()));
  }
  call->set_arguments(ToJson(*normal, NumberSpelling::kAsWritten));
  return absl::OkStatus();
}

absl::StatusOr<v1::ChatMessage> ParseMessage(const JsonValue& value, const std::string& where) {
  if (!value.is_object()) return Wrong(where, KindName(value.kind()), "an object");
  v1::ChatMessage message;
  const JsonValue* role = value.Find("role");
  const bool is_text = role != nullptr && role->is_string();
  if (!is_text || std::find(kRoles.begin(), kRoles.end(), role->string_value()) == kRoles.end()) {
    return Wrong(
        where + ".role",
        is_text ? absl::StrCat("\"", role->string_value(), "\"") : std::string(KindOf(role)),
        "system, user, assistant or tool");
  }
  message.set_role(role->string_value());
  const absl::StatusOr<std::string> content = NormalizeContent(value.Find("content"));
  if (!content.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ".content: ", content.status().message()));
  }
  message.set_content(*content);
  ASSIGN_OR_RETURN(std::optional<std::string> reasoning,
                   OptionalString(value, "reasoning_content", where));
  if (reasoning) message.set_reasoning_content(*reasoning);
  ASSIGN_OR_RETURN(std::optional<std::string> call_id,
                   OptionalString(value, "tool_call_id", where));
  if (call_id) message.set_tool_call_id(*call_id);
  const JsonValue* calls = value.Find("tool_calls");
  if (calls != nullptr && !calls->is_null()) {
    if (!calls->is_array()) return Wrong(where + ".tool_calls", KindOf(calls), "a list");
    for (size_t i = 0; i < calls->items().size(); ++i) {
      RETURN_IF_ERROR(ParseToolCall(calls->items()[i], absl::StrCat(where, ".tool_calls[", i, "]"),
                                    message.add_tool_calls()));
    }
  }
  return message;
}

}  // namespace

absl::StatusOr<std::string> ReadInput(const std::string& path) {
  std::ifstream file;
  if (path != "-") {
    file.open(path, std::ios::binary);
    if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  }
  std::istream& input = path == "-" ? std::cin : file;
  std::string text;
  std::array<char, 1 << 16> buffer;
  while (input.read(buffer.data(), buffer.size()), input.gcount() > 0) {
    text.append(buffer.data(), static_cast<size_t>(input.gcount()));
    if (text.size() > limits::kMaxPromptBytes) {
      return errors::OutOfRange(absl::StrCat("the size of ", path),
                                absl::StrCat("over ", limits::kMaxPromptBytes, " bytes"),
                                "no more than that");
    }
  }
  if (input.bad()) return absl::InternalError(absl::StrCat("cannot read ", path));
  return text;
}

absl::StatusOr<std::vector<v1::ChatMessage>> ParseMessages(absl::string_view json) {
  ASSIGN_OR_RETURN(const JsonValue list, ParseList(json, "messages"));
  std::vector<v1::ChatMessage> messages;
  for (size_t i = 0; i < list.items().size(); ++i) {
    ASSIGN_OR_RETURN(v1::ChatMessage message,
                     ParseMessage(list.items()[i], absl::StrCat("messages[", i, "]")));
    messages.push_back(std::move(message));
  }
  return messages;
}

absl::StatusOr<std::vector<std::string>> ParseTools(absl::string_view json) {
  ASSIGN_OR_RETURN(const JsonValue list, ParseList(json, "tools"));
  std::vector<std::string> tools;
  for (size_t i = 0; i < list.items().size(); ++i) {
    const std::string where = absl::StrCat("tools[", i, "]");
    const JsonValue& tool = list.items()[i];
    if (!tool.is_object()) return Wrong(where, KindName(tool.kind()), "an object");
    const JsonValue* function = tool.Find("function");
    if (function == nullptr || !function->is_object()) {
      return Wrong(where + ".function", KindOf(function), "an object");
    }
    const JsonValue* name = function->Find("name");
    if (name == nullptr || !name->is_string()) {
      return Wrong(where + ".function.name", KindOf(name), "a string");
    }
    tools.push_back(ToJson(tool, NumberSpelling::kAsWritten));
  }
  return tools;
}

absl::StatusOr<std::vector<uint32_t>> ParseIds(absl::string_view text) {
  std::vector<uint32_t> ids;
  for (absl::string_view word :
       absl::StrSplit(text, absl::ByAnyChar(", \t\r\n"), absl::SkipEmpty())) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(word, &id)) {
      return Wrong("token id", absl::StrCat("\"", word, "\""), "a whole number of 0..4294967295");
    }
    ids.push_back(id);
  }
  return ids;
}

}  // namespace conclave
