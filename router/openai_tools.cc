#include "router/openai_tools.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

absl::Status CheckTool(const OpenAiFields& tool) {
  const JsonValue* type = tool.Given("type");
  if (type == nullptr || type->string_value() != "function") {
    return WrongField(tool.Path("type"), type == nullptr ? JsonValue() : *type, "\"function\"");
  }
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> function, tool.Object("function"));
  if (!function.has_value()) return MissingField(tool.Path("function"), "an object");
  ASSIGN_OR_RETURN(const std::optional<std::string> name, function->String("name"));
  if (!name.has_value()) return MissingField(function->Path("name"), "a string");
  return absl::OkStatus();
}

absl::Status ReadNamedChoice(const OpenAiFields& choice, v1::ToolChoice* out) {
  const JsonValue* type = choice.Given("type");
  if (type == nullptr || type->string_value() != "function") {
    return WrongField(choice.Path("type"), type == nullptr ? JsonValue() : *type, "\"function\"");
  }
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> function, choice.Object("function"));
  if (!function.has_value()) return MissingField(choice.Path("function"), "an object");
  ASSIGN_OR_RETURN(std::optional<std::string> name, function->String("name"));
  if (!name.has_value()) return MissingField(function->Path("name"), "a string");
  out->set_kind(v1::ToolChoice::NAMED);
  out->set_name(*std::move(name));
  return absl::OkStatus();
}

absl::Status ReadChoice(const OpenAiFields& body, v1::ToolChoice* out) {
  constexpr struct {
    absl::string_view word;
    v1::ToolChoice::Kind kind;
  } kWords[] = {
      {"auto", v1::ToolChoice::AUTO},
      {"none", v1::ToolChoice::NONE},
      {"required", v1::ToolChoice::REQUIRED},
  };
  const JsonValue* choice = body.Given("tool_choice");
  if (choice == nullptr) return absl::OkStatus();
  const std::string path = body.Path("tool_choice");
  if (choice->is_object()) return ReadNamedChoice(OpenAiFields(*choice, path), out);
  for (const auto& [word, kind] : kWords) {
    if (choice->string_value() == word) {
      out->set_kind(kind);
      return absl::OkStatus();
    }
  }
  return WrongField(path, *choice, "auto, none, required or an object that names a function");
}

}  // namespace

absl::Status ReadTools(const OpenAiFields& body, v1::ChatRequest* request) {
  ASSIGN_OR_RETURN(const JsonValue* tools, body.Array("tools"));
  for (size_t i = 0; tools != nullptr && i < tools->items().size(); ++i) {
    const JsonValue& item = tools->items()[i];
    ASSIGN_OR_RETURN(const OpenAiFields tool,
                     ReadObject(absl::StrCat(body.Path("tools"), "[", i, "]"), item));
    RETURN_IF_ERROR(CheckTool(tool));
    request->add_tools(ToJson(item, NumberSpelling::kAsWritten));
  }
  return ReadChoice(body, request->mutable_tool_choice());
}

}  // namespace conclave
