#include "client/render_command.h"

#include <cstdint>
#include <memory>
#include <vector>

#include "client/json_lines.h"
#include "common/status_macros.h"
#include "text/tokenizer.h"

namespace conclave {
namespace {

absl::StatusOr<JsonValue> RenderLine(const Tokenizer& tokenizer, TemplateKind kind,
                                     const std::string& line) {
  ASSIGN_OR_RETURN(const ChatPrompt prompt, ParseChatPrompt(line));
  ASSIGN_OR_RETURN(std::string text, RenderChat(kind, prompt));
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, tokenizer.Encode(text));
  return JsonValue::MakeObject(
      {{"text", JsonValue::String(std::move(text))}, {"ids", IdsToJson(ids)}});
}

}  // namespace

absl::Status RunRender(const RenderOptions& options, std::istream& in, std::ostream& out) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(options.model_dir));
  TemplateKind kind = TemplateKind::kQwen3;
  if (options.chat_template.has_value()) {
    kind = *options.chat_template;
  } else {
    ASSIGN_OR_RETURN(kind, DetectTemplate(options.model_dir));
  }
  return AnswerLines(in, out,
                     [&](const std::string& line) { return RenderLine(*tokenizer, kind, line); });
}

}  // namespace conclave
