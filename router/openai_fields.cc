#include "router/openai_fields.h"

#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/utf8.h"

namespace conclave {
namespace {

constexpr size_t kMaxShownBytes = 64;
// Doubles up to here are exact integers, so that 1024.0 is read as 1024 and 1e300 is not.
constexpr double kMaxExactInteger = 9007199254740992;  // 2^53

absl::string_view Cut(absl::string_view text) {
  text = text.substr(0, kMaxShownBytes);
  return text.substr(0, ValidUtf8Prefix(text));
}

std::optional<int64_t> ToInteger(const JsonValue& value) {
  if (!value.is_number()) return std::nullopt;
  int64_t integer = 0;
  if (absl::SimpleAtoi(value.number_spelling(), &integer)) return integer;
  double number = 0;
  if (!absl::SimpleAtod(value.number_spelling(), &number)) return std::nullopt;
  if (std::abs(number) > kMaxExactInteger || number != std::floor(number)) return std::nullopt;
  return static_cast<int64_t>(number);
}

std::string IntegerRange(int64_t low, int64_t high) {
  const bool open_low = low == std::numeric_limits<int64_t>::min();
  const bool open_high = high == std::numeric_limits<int64_t>::max();
  if (open_low && open_high) return "an integer";
  if (open_high) return absl::StrCat("an integer of ", low, " or more");
  return absl::StrCat("an integer in ", low, "..", high);
}

}  // namespace

std::string DescribeJson(const JsonValue& value) {
  switch (value.kind()) {
    case JsonValue::Kind::kNull:
      return "null";
    case JsonValue::Kind::kBool:
      return value.bool_value() ? "true" : "false";
    case JsonValue::Kind::kNumber:
      return std::string(Cut(value.number_spelling()));
    case JsonValue::Kind::kString:
      return absl::StrCat("\"", Cut(value.string_value()), "\"");
    default:
      return std::string(KindName(value.kind()));
  }
}

absl::Status WrongField(absl::string_view path, const JsonValue& value, absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, " is ", DescribeJson(value), ", want ", wanted));
}

absl::Status MissingField(absl::string_view path, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat(path, " is missing, want ", wanted));
}

std::string OpenAiFields::Path(absl::string_view key) const {
  return path_.empty() ? std::string(key) : absl::StrCat(path_, ".", key);
}

const JsonValue* OpenAiFields::Given(absl::string_view key) const {
  const JsonValue* value = object_->Find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

absl::StatusOr<std::optional<bool>> OpenAiFields::Bool(absl::string_view key) const {
  const JsonValue* value = Given(key);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_bool()) return WrongField(Path(key), *value, "true or false");
  return std::optional<bool>(value->bool_value());
}

absl::StatusOr<std::optional<std::string>> OpenAiFields::String(absl::string_view key) const {
  const JsonValue* value = Given(key);
  if (value == nullptr) return std::optional<std::string>();
  if (!value->is_string()) return WrongField(Path(key), *value, "a string");
  return std::optional<std::string>(value->string_value());
}

absl::StatusOr<std::optional<double>> OpenAiFields::Number(absl::string_view key) const {
  const JsonValue* value = Given(key);
  if (value == nullptr) return std::optional<double>();
  ASSIGN_OR_RETURN(const double number, ReadNumber(Path(key), *value));
  return std::optional<double>(number);
}

absl::StatusOr<std::optional<int64_t>> OpenAiFields::Integer(absl::string_view key, int64_t low,
                                                             int64_t high) const {
  const JsonValue* value = Given(key);
  if (value == nullptr) return std::optional<int64_t>();
  ASSIGN_OR_RETURN(const int64_t integer, ReadInteger(Path(key), *value, low, high));
  return std::optional<int64_t>(integer);
}

absl::StatusOr<std::optional<uint64_t>> OpenAiFields::Bits64(absl::string_view key) const {
  const JsonValue* value = Given(key);
  if (value == nullptr) return std::optional<uint64_t>();
  if (const std::optional<int64_t> integer = ToInteger(*value); integer.has_value()) {
    return std::optional<uint64_t>(static_cast<uint64_t>(*integer));
  }
  uint64_t bits = 0;
  if (value->is_number() && absl::SimpleAtoi(value->number_spelling(), &bits)) {
    return std::optional<uint64_t>(bits);
  }
  return WrongField(Path(key), *value, "an integer of 64 bits");
}

absl::StatusOr<std::optional<OpenAiFields>> OpenAiFields::Object(absl::string_view key) const {
  const JsonValue* value = Given(key);
  if (value == nullptr) return std::optional<OpenAiFields>();
  ASSIGN_OR_RETURN(OpenAiFields fields, ReadObject(Path(key), *value));
  return std::optional<OpenAiFields>(std::move(fields));
}

absl::StatusOr<const JsonValue*> OpenAiFields::Array(absl::string_view key) const {
  const JsonValue* value = Given(key);
  if (value != nullptr && !value->is_array()) return WrongField(Path(key), *value, "a list");
  return value;
}

absl::StatusOr<int64_t> ReadInteger(absl::string_view path, const JsonValue& value, int64_t low,
                                    int64_t high) {
  const std::optional<int64_t> integer = ToInteger(value);
  if (!integer.has_value() || *integer < low || *integer > high) {
    return WrongField(path, value, IntegerRange(low, high));
  }
  return *integer;
}

absl::StatusOr<double> ReadNumber(absl::string_view path, const JsonValue& value) {
  double number = 0;
  if (!value.is_number() || !absl::SimpleAtod(value.number_spelling(), &number)) {
    return WrongField(path, value, "a number");
  }
  return number;
}

absl::StatusOr<OpenAiFields> ReadObject(std::string path, const JsonValue& value) {
  if (!value.is_object()) return WrongField(path, value, "an object");
  return OpenAiFields(value, std::move(path));
}

absl::StatusOr<std::vector<uint32_t>> ReadIds(absl::string_view path, const JsonValue& array) {
  std::vector<uint32_t> ids;
  ids.reserve(array.items().size());
  for (const JsonValue& item : array.items()) {
    const std::optional<int64_t> id = ToInteger(item);
    if (!id.has_value() || *id < 0 || *id > std::numeric_limits<uint32_t>::max()) {
      return WrongField(absl::StrCat(path, "[", ids.size(), "]"), item, "a token id");
    }
    ids.push_back(static_cast<uint32_t>(*id));
  }
  return ids;
}

}  // namespace conclave
