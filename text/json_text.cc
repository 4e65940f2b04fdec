#include "text/json_text.h"

#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/charconv.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "text/utf8.h"

namespace conclave {
namespace {

constexpr int kMaxDepth = 256;  // keeps recursion, also of destructors, far from the stack's end

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

class Parser {
 public:
  explicit Parser(absl::string_view text) : text_(text) {}

  absl::StatusOr<JsonValue> ParseAll() {
    ASSIGN_OR_RETURN(JsonValue value, ParseValue(0));
    SkipSpace();
    if (at_ != text_.size()) return Error("the end of the JSON text");
    return value;
  }

 private:
  absl::Status Error(absl::string_view wanted) const {
    std::string found = "the end";
    if (at_ < text_.size()) {  // a whole character: messages must stay UTF-8
      const int num_bytes = DecodeValidUtf8(text_.substr(at_)).num_bytes;
      found = absl::StrCat("'", text_.substr(at_, static_cast<size_t>(num_bytes)), "'");
    }
    return absl::InvalidArgumentError(
        absl::StrCat("bad JSON at byte ", at_, ": found ", found, ", want ", wanted));
  }

  void SkipSpace() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  bool Eat(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  bool EatWord(absl::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  absl::StatusOr<JsonValue> ParseValue(int depth) {
    if (depth > kMaxDepth) return Error(absl::StrCat("at most ", kMaxDepth, " levels"));
    SkipSpace();
    if (at_ >= text_.size()) return Error("a value");
    if (++num_values_ > limits::kMaxJsonValues) {
      return Error(absl::StrCat("at most ", limits::kMaxJsonValues, " values"));
    }
    switch (text_[at_]) {
      case '{':
        return ParseObject(depth);
      case '[':
        return ParseArray(depth);
      case '"': {
        ASSIGN_OR_RETURN(std::string text, ParseString());
        return JsonValue::String(std::move(text));
      }
      default:
        break;
    }
    if (EatWord("null")) return JsonValue();
    if (EatWord("true")) return JsonValue::Bool(true);
    if (EatWord("false")) return JsonValue::Bool(false);
    return ParseNumber();
  }

  absl::StatusOr<JsonValue> ParseObject(int depth) {
    ++at_;
    JsonValue::Object members;
    absl::flat_hash_map<std::string, size_t> places;
    SkipSpace();
    if (Eat('}')) return JsonValue::MakeObject(std::move(members));
    do {
      SkipSpace();
      if (at_ >= text_.size() || text_[at_] != '"') return Error("a key in quotes");
      ASSIGN_OR_RETURN(std::string key, ParseString());
      SkipSpace();
      if (!Eat(':')) return Error("':'");
      ASSIGN_OR_RETURN(JsonValue value, ParseValue(depth + 1));
      const auto [it, is_new] = places.emplace(key, members.size());
      if (is_new) {
        members.emplace_back(std::move(key), std::move(value));
      } else {
        members[it->second].second = std::move(value);
      }
      SkipSpace();
    } while (Eat(','));
    if (!Eat('}')) return Error("',' or '}'");
    return JsonValue::MakeObject(std::move(members));
  }

  absl::StatusOr<JsonValue> ParseArray(int depth) {
    ++at_;
    JsonValue::Array items;
    SkipSpace();
    if (Eat(']')) return JsonValue::MakeArray(std::move(items));
    do {
      ASSIGN_OR_RETURN(JsonValue item, ParseValue(depth + 1));
      items.push_back(std::move(item));
      SkipSpace();
    } while (Eat(','));
    if (!Eat(']')) return Error("',' or ']'");
    return JsonValue::MakeArray(std::move(items));
  }

  absl::StatusOr<JsonValue> ParseNumber() {
    const size_t begin = at_;
    const auto eat_digits = [this] {
      const size_t first = at_;
      while (at_ < text_.size() && IsDigit(text_[at_])) ++at_;
      return at_ > first;
    };
    Eat('-');
    if (!Eat('0') && !eat_digits()) return Error("a value");
    if (Eat('.') && !eat_digits()) return Error("a digit");
    if (Eat('e') || Eat('E')) {
      if (!Eat('-')) Eat('+');
      if (!eat_digits()) return Error("a digit");
    }
    return JsonValue::Number(std::string(text_.substr(begin, at_ - begin)));
  }

  absl::StatusOr<std::string> ParseString() {
    ++at_;
    std::string out;
    while (true) {
      if (at_ >= text_.size()) return Error("'\"'");
      const char c = text_[at_];
      if (static_cast<uint8_t>(c) < 0x20) return Error("no control character inside a string");
      ++at_;
      if (c == '"') return out;
      if (c == '\\') {
        RETURN_IF_ERROR(ParseEscape(&out));
      } else {
        out.push_back(c);
      }
    }
  }

  absl::Status ParseEscape(std::string* out) {
    constexpr absl::string_view kNames = "\"\\/bfnrt";
    constexpr absl::string_view kValues = "\"\\/\b\f\n\r\t";
    if (at_ >= text_.size()) return Error("an escape");
    if (Eat('u')) {
      ASSIGN_OR_RETURN(char32_t unit, ParseHexUnit());
      if (unit >= 0xDC00 && unit < 0xE000) return Error("no low surrogate on its own");
      if (unit >= 0xD800 && unit < 0xDC00) {
        if (!EatWord("\\u")) return Error("a low surrogate");
        ASSIGN_OR_RETURN(const char32_t low, ParseHexUnit());
        if (low < 0xDC00 || low >= 0xE000) return Error("a low surrogate before this");
        unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
      }
      AppendUtf8(unit, out);
      return absl::OkStatus();
    }
    const size_t name = kNames.find(text_[at_]);
    if (name == absl::string_view::npos) return Error("an escape");
    out->push_back(kValues[name]);
    ++at_;
    return absl::OkStatus();
  }

  absl::StatusOr<char32_t> ParseHexUnit() {
    uint32_t unit = 0;
    const char* begin = text_.data() + at_;
    if (at_ + 4 > text_.size()) return Error("four hexadecimal digits");
    const auto [end, error] = std::from_chars(begin, begin + 4, unit, 16);
    if (error != std::errc() || end != begin + 4) return Error("four hexadecimal digits");
    at_ += 4;
    return char32_t{unit};
  }

  absl::string_view text_;
  size_t at_ = 0;
  int num_values_ = 0;
};

void AppendString(absl::string_view text, std::string* out) {
  constexpr char kHex[] = "0123456789abcdef";
  out->push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\b':
        out->append("\\b");
        break;
      case '\f':
        out->append("\\f");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\r':
        out->append("\\r");
        break;
      case '\t':
        out->append("\\t");
        break;
      default:
        if (static_cast<uint8_t>(c) < 0x20) {
          out->append("\\u00");
          out->push_back(kHex[static_cast<uint8_t>(c) >> 4]);
          out->push_back(kHex[static_cast<uint8_t>(c) & 15]);
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

// Python's repr of a float: the shortest digits that read back as the same number, plain from
// 1e-4 to below 1e16, else with an exponent of two digits or more.
std::string PythonFloat(const std::string& spelling) {
  double value = 0;
  const absl::from_chars_result parsed =
      absl::from_chars(spelling.data(), spelling.data() + spelling.size(), value);
  // Out of range gives the largest double or (almost) zero; Python has infinity for the former.
  if (parsed.ec == std::errc::result_out_of_range && std::abs(value) > 1) {
    return value > 0 ? "Infinity" : "-Infinity";
  }
  const std::string sign = std::signbit(value) ? "-" : "";
  if (value == 0) return sign + "0.0";
  char buffer[40];
  const std::to_chars_result printed = std::to_chars(
      buffer, buffer + sizeof(buffer), std::abs(value), std::chars_format::scientific);
  const absl::string_view text(buffer, static_cast<size_t>(printed.ptr - buffer));
  const size_t e = text.find('e');
  std::string digits(text.substr(0, 1));  // "d.ddde+xx"
  if (e > 2) absl::StrAppend(&digits, text.substr(2, e - 2));
  int exponent = 0;
  std::from_chars(text.data() + e + (text[e + 1] == '+' ? 2 : 1), text.data() + text.size(),
                  exponent);
  if (exponent < -4 || exponent >= 16) {
    std::string mantissa = digits.substr(0, 1);
    if (digits.size() > 1) absl::StrAppend(&mantissa, ".", digits.substr(1));
    const int magnitude = std::abs(exponent);
    return absl::StrCat(sign, mantissa, exponent < 0 ? "e-" : "e+", magnitude < 10 ? "0" : "",
                        magnitude);
  }
  if (exponent < 0) {
    return absl::StrCat(sign, "0.", std::string(static_cast<size_t>(-exponent - 1), '0'), digits);
  }
  const size_t num_whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= num_whole) {
    return absl::StrCat(sign, digits, std::string(num_whole - digits.size(), '0'), ".0");
  }
  return absl::StrCat(sign, digits.substr(0, num_whole), ".", digits.substr(num_whole));
}

void AppendNumber(const std::string& spelling, NumberSpelling style, std::string* out) {
  if (style == NumberSpelling::kAsWritten) {
    out->append(spelling);
  } else if (spelling.find_first_of(".eE") != std::string::npos) {
    out->append(PythonFloat(spelling));
  } else {
    out->append(spelling == "-0" ? "0" : spelling);
  }
}

void AppendJson(const JsonValue& value, NumberSpelling style, std::string* out) {
  switch (value.kind()) {
    case JsonValue::Kind::kNull:
      out->append("null");
      return;
    case JsonValue::Kind::kBool:
      out->append(value.bool_value() ? "true" : "false");
      return;
    case JsonValue::Kind::kNumber:
      AppendNumber(value.number_spelling(), style, out);
      return;
    case JsonValue::Kind::kString:
      AppendString(value.string_value(), out);
      return;
    case JsonValue::Kind::kArray: {
      absl::string_view separator = "[";
      for (const JsonValue& item : value.items()) {
        absl::StrAppend(out, separator);
        AppendJson(item, style, out);
        separator = ", ";
      }
      out->append(value.items().empty() ? "[]" : "]");
      return;
    }
    case JsonValue::Kind::kObject: {
      absl::string_view separator = "{";
      for (const JsonValue::Member& member : value.members()) {
        absl::StrAppend(out, separator);
        AppendString(member.first, out);
        out->append(": ");
        AppendJson(member.second, style, out);
        separator = ", ";
      }
      out->append(value.members().empty() ? "{}" : "}");
      return;
    }
  }
}

}  // namespace

JsonValue JsonValue::Bool(bool value) {
  JsonValue result;
  result.kind_ = Kind::kBool;
  result.bool_ = value;
  return result;
}

JsonValue JsonValue::Number(std::string spelling) {
  JsonValue result;
  result.kind_ = Kind::kNumber;
  result.text_ = std::move(spelling);
  return result;
}

JsonValue JsonValue::String(std::string value) {
  JsonValue result;
  result.kind_ = Kind::kString;
  result.text_ = std::move(value);
  return result;
}

JsonValue JsonValue::MakeArray(Array items) {
  JsonValue result;
  result.kind_ = Kind::kArray;
  result.items_ = std::move(items);
  return result;
}

JsonValue JsonValue::MakeObject(Object members) {
  JsonValue result;
  result.kind_ = Kind::kObject;
  result.members_ = std::move(members);
  return result;
}

const JsonValue* JsonValue::Find(absl::string_view key) const {
  for (const Member& member : members_) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

const std::string& JsonValue::EmptyString() {
  static const std::string* const empty = new std::string();
  return *empty;
}

absl::string_view KindName(JsonValue::Kind kind) {
  switch (kind) {
    case JsonValue::Kind::kNull:
      return "null";
    case JsonValue::Kind::kBool:
      return "a boolean";
    case JsonValue::Kind::kNumber:
      return "a number";
    case JsonValue::Kind::kString:
      return "a string";
    case JsonValue::Kind::kArray:
      return "an array";
    case JsonValue::Kind::kObject:
      return "an object";
  }
  return "";
}

absl::StatusOr<JsonValue> ParseJson(absl::string_view text) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid != text.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("JSON is not valid UTF-8 at byte ", valid, ", want UTF-8"));
  }
  return Parser(text).ParseAll();
}

std::string ToJson(const JsonValue& value, NumberSpelling spelling) {
  std::string out;
  AppendJson(value, spelling, &out);
  return out;
}

}  // namespace conclave
