#include "client/tokenize_command.h"

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/json_lines.h"
#include "common/status_macros.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

namespace conclave {
namespace {

absl::StatusOr<JsonValue> EncodeLine(const Tokenizer& tokenizer, AddedTokens mode,
                                     const std::string& line) {
  ASSIGN_OR_RETURN(const JsonValue request, ParseJson(line));
  const JsonValue* text = request.Find("text");
  if (text == nullptr || !text->is_string()) {
    return absl::InvalidArgumentError("text is missing or no string, want {\"text\": \"...\"}");
  }
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, tokenizer.Encode(text->string_value(), mode));
  return JsonValue::MakeObject({{"ids", IdsToJson(ids)}});
}

absl::StatusOr<std::vector<uint32_t>> ParseIds(const JsonValue& request) {
  const JsonValue* list = request.Find("ids");
  if (list == nullptr || !list->is_array()) {
    return absl::InvalidArgumentError("ids is missing or no array, want {\"ids\": [...]}");
  }
  std::vector<uint32_t> ids;
  for (const JsonValue& item : list->items()) {
    uint32_t id = 0;
    if (!item.is_number() || !absl::SimpleAtoi(item.number_spelling(), &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("ids[", ids.size(), "] is ", ToJson(item), ", want 0..4294967295"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<JsonValue> DecodeLine(const Tokenizer& tokenizer, const std::string& line) {
  ASSIGN_OR_RETURN(const JsonValue request, ParseJson(line));
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, ParseIds(request));
  StreamDecoder decoder(&tokenizer.vocabulary());
  JsonValue::Array pieces;
  for (const uint32_t id : ids) pieces.push_back(JsonValue::String(decoder.Push(id)));
  return JsonValue::MakeObject(
      {{"text", JsonValue::String(tokenizer.Decode(ids, /*skip_special=*/false))},
       {"pieces", JsonValue::MakeArray(std::move(pieces))},
       {"flush", JsonValue::String(decoder.Flush())}});
}

}  // namespace

absl::Status RunTokenize(const TokenizeOptions& options, std::istream& in, std::ostream& out) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(options.model_dir));
  const AddedTokens mode = options.plain ? AddedTokens::kPlain : AddedTokens::kMatch;
  return AnswerLines(in, out, [&](const std::string& line) {
    return options.decode ? DecodeLine(*tokenizer, line) : EncodeLine(*tokenizer, mode, line);
  });
}

}  // namespace conclave
