#include "router/openai_messages.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/chat_template.h"

namespace conclave {
namespace {

absl::StatusOr<std::string> ReadRole(const OpenAiFields& message) {
  ASSIGN_OR_RETURN(std::optional<std::string> role, message.String("role"));
  if (!role.has_value()) return MissingField(message.Path("role"), "a role");
  if (*role == "developer") return std::string("system");
  for (const absl::string_view known : {"system", "user", "assistant", "tool"}) {
    if (*role == known) return *std::move(role);
  }
  return WrongField(message.Path("role"), *message.Given("role"),
                    "system, developer, user, assistant or tool");
}

// A string stays as it is: the engine reads it, and says what is wrong with it.
absl::StatusOr<std::string> ReadArguments(const OpenAiFields& function) {
  const JsonValue* arguments = function.Given("arguments");
  if (arguments == nullptr) return std::string();
  if (arguments->is_string()) return arguments->string_value();
  if (arguments->is_object()) return ToJson(*arguments, NumberSpelling::kAsWritten);
  return WrongField(function.Path("arguments"), *arguments, "an object, a string or null");
}

absl::Status ReadToolCall(const OpenAiFields& call, v1::ToolCall* out) {
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> function, call.Object("function"));
  if (!function.has_value()) return MissingField(call.Path("function"), "an object");
  ASSIGN_OR_RETURN(std::optional<std::string> name, function->String("name"));
  if (!name.has_value()) return MissingField(function->Path("name"), "a string");
  out->set_name(*std::move(name));
  ASSIGN_OR_RETURN(*out->mutable_arguments(), ReadArguments(*function));
  ASSIGN_OR_RETURN(std::optional<std::string> id, call.String("id"));
  if (id.has_value()) out->set_id(*std::move(id));
  return absl::OkStatus();
}

absl::Status ReadToolCalls(const OpenAiFields& message, v1::ChatMessage* out) {
  if (const JsonValue* old = message.Given("function_call"); old != nullptr) {
    return WrongField(message.Path("function_call"), *old, "none: use tool_calls");
  }
  ASSIGN_OR_RETURN(const JsonValue* calls, message.Array("tool_calls"));
  if (calls == nullptr) return absl::OkStatus();
  for (size_t i = 0; i < calls->items().size(); ++i) {
    ASSIGN_OR_RETURN(
        const OpenAiFields call,
        ReadObject(absl::StrCat(message.Path("tool_calls"), "[", i, "]"), calls->items()[i]));
    RETURN_IF_ERROR(ReadToolCall(call, out->add_tool_calls()));
  }
  return absl::OkStatus();
}

absl::Status ReadMessage(const OpenAiFields& message, v1::ChatMessage* out) {
  ASSIGN_OR_RETURN(*out->mutable_role(), ReadRole(message));
  absl::StatusOr<std::string> content = NormalizeContent(message.Given("content"));
  if (!content.ok()) {
    return absl::InvalidArgumentError(message.Path(content.status().message()));
  }
  out->set_content(*std::move(content));
  RETURN_IF_ERROR(ReadToolCalls(message, out));
  if (out->role() == "assistant") {
    // Clients that got both send both back; they are the same.
    for (const absl::string_view key : {"reasoning_content", "reasoning"}) {
      ASSIGN_OR_RETURN(std::optional<std::string> reasoning, message.String(key));
      if (reasoning.has_value() && !out->has_reasoning_content()) {
        out->set_reasoning_content(*std::move(reasoning));
      }
    }
  } else if (out->role() == "tool") {
    for (const absl::string_view key : {"tool_call_id", "id"}) {
      ASSIGN_OR_RETURN(std::optional<std::string> id, message.String(key));
      if (id.has_value() && out->tool_call_id().empty()) out->set_tool_call_id(*std::move(id));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadMessages(const OpenAiFields& body, v1::ChatRequest* request) {
  ASSIGN_OR_RETURN(const JsonValue* messages, body.Array("messages"));
  if (messages == nullptr) return MissingField("messages", "a list");
  for (size_t i = 0; i < messages->items().size(); ++i) {
    ASSIGN_OR_RETURN(const OpenAiFields message,
                     ReadObject(absl::StrCat("messages[", i, "]"), messages->items()[i]));
    RETURN_IF_ERROR(ReadMessage(message, request->add_messages()));
  }
  return absl::OkStatus();
}

}  // namespace conclave
