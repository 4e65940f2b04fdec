#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace conclave {

// A JSON value that keeps what a prompt must reproduce and JSON libraries throw away: the order
// of keys and how numbers are spelled (1.0, 1e16, integers of any size).
class JsonValue {
 public:
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };
  using Array = std::vector<JsonValue>;
  using Member = std::pair<std::string, JsonValue>;
  using Object = std::vector<Member>;  // keys are distinct

  JsonValue() = default;  // null
  static JsonValue Bool(bool value);
  static JsonValue Number(std::string spelling);  // must be a JSON number
  static JsonValue String(std::string value);     // UTF-8
  static JsonValue MakeArray(Array items);
  static JsonValue MakeObject(Object members);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::kNull; }
  bool is_bool() const { return kind_ == Kind::kBool; }
  bool is_number() const { return kind_ == Kind::kNumber; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_array() const { return kind_ == Kind::kArray; }
  bool is_object() const { return kind_ == Kind::kObject; }

  // Each is meaningful for its kind and empty (false) for the others.
  bool bool_value() const { return bool_; }
  const std::string& number_spelling() const { return is_number() ? text_ : EmptyString(); }
  const std::string& string_value() const { return is_string() ? text_ : EmptyString(); }
  const Array& items() const { return items_; }
  const Object& members() const { return members_; }
  // The member's value, or null if this is no object or has no such key.
  const JsonValue* Find(absl::string_view key) const;

 private:
  static const std::string& EmptyString();

  Kind kind_ = Kind::kNull;
  bool bool_ = false;
  std::string text_;
  Array items_;
  Object members_;
};

// "an object", "a string", ... for messages.
absl::string_view KindName(JsonValue::Kind kind);

// One JSON value (RFC 8259) with nothing but whitespace around it. Of equal keys the first gives
// the place and the last the value, as in Python. InvalidArgument naming what is wrong and the
// byte offset, also for invalid UTF-8, lone surrogates, more than 256 levels of nesting and more
// than limits::kMaxJsonValues values.
absl::StatusOr<JsonValue> ParseJson(absl::string_view text);

enum class NumberSpelling {
  kPython,     // 1.50 is 1.5, 1e5 is 100000.0, 1e400 is Infinity; integers stay as they are
  kAsWritten,  // always JSON again
};

// As Python's json.dumps(value, ensure_ascii=False) writes it: ", " and ": " between, nothing but
// `"`, `\` and control characters escaped. It is what chat templates' tojson means.
std::string ToJson(const JsonValue& value, NumberSpelling spelling = NumberSpelling::kPython);

}  // namespace conclave
