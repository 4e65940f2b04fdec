#include "client/json_lines.h"

#include "absl/strings/str_cat.h"

namespace conclave {

absl::Status AnswerLines(std::istream& in, std::ostream& out,
                         absl::FunctionRef<absl::StatusOr<JsonValue>(const std::string&)> answer) {
  int64_t num_lines = 0;
  int64_t num_bad = 0;
  int64_t first_bad = 0;
  std::string line;
  while (std::getline(in, line)) {
    ++num_lines;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    absl::StatusOr<JsonValue> result = answer(line);
    if (!result.ok()) {
      if (num_bad++ == 0) first_bad = num_lines;
      std::string message = absl::StrCat("line ", num_lines, ": ", result.status().message());
      result = JsonValue::MakeObject({{"error", JsonValue::String(std::move(message))}});
    }
    out << ToJson(*result, NumberSpelling::kAsWritten) << "\n";
    if (!out) return absl::UnavailableError(absl::StrCat("cannot write line ", num_lines));
  }
  out.flush();
  if (num_bad == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      num_bad, " of ", num_lines, " lines could not be answered, the first is line ", first_bad));
}

JsonValue IdsToJson(absl::Span<const uint32_t> ids) {
  JsonValue::Array items;
  items.reserve(ids.size());
  for (const uint32_t id : ids) items.push_back(JsonValue::Number(absl::StrCat(id)));
  return JsonValue::MakeArray(std::move(items));
}

}  // namespace conclave
