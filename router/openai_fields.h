#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "text/json_text.h"

namespace conclave {

// "null", "true", "1.5", "\"text\"" (cut to 64 bytes), "an array", "an object": values in messages.
std::string DescribeJson(const JsonValue& value);

// INVALID_ARGUMENT "<path> is <value>, want <wanted>".
absl::Status WrongField(absl::string_view path, const JsonValue& value, absl::string_view wanted);
// INVALID_ARGUMENT "<path> is missing, want <wanted>".
absl::Status MissingField(absl::string_view path, absl::string_view wanted);

// Typed reading of one JSON object's members. A member that is null is as not given: nullopt or
// nullptr. A wrong type is INVALID_ARGUMENT; the message begins with the member's path in the body,
// as "messages[2].content".
class OpenAiFields {
 public:
  // `object` must be an object and outlive this. path: its own, empty for the body.
  OpenAiFields(const JsonValue& object, std::string path) : object_(&object), path_(path) {}

  std::string Path(absl::string_view key) const;
  const JsonValue* Given(absl::string_view key) const;

  absl::StatusOr<std::optional<bool>> Bool(absl::string_view key) const;
  absl::StatusOr<std::optional<std::string>> String(absl::string_view key) const;
  absl::StatusOr<std::optional<double>> Number(absl::string_view key) const;
  // A number without a fraction (2.0 is one) within low..high.
  absl::StatusOr<std::optional<int64_t>> Integer(
      absl::string_view key, int64_t low = std::numeric_limits<int64_t>::min(),
      int64_t high = std::numeric_limits<int64_t>::max()) const;
  // An integer of 64 bits, signed or not; negative ones as two's complement.
  absl::StatusOr<std::optional<uint64_t>> Bits64(absl::string_view key) const;
  absl::StatusOr<std::optional<OpenAiFields>> Object(absl::string_view key) const;
  // nullptr if it is not given; else its kind is array.
  absl::StatusOr<const JsonValue*> Array(absl::string_view key) const;

  const JsonValue& object() const { return *object_; }

 private:
  const JsonValue* object_;
  std::string path_;
};

// The same for a value that is no member.
absl::StatusOr<int64_t> ReadInteger(absl::string_view path, const JsonValue& value, int64_t low,
                                    int64_t high);
absl::StatusOr<double> ReadNumber(absl::string_view path, const JsonValue& value);
absl::StatusOr<OpenAiFields> ReadObject(std::string path, const JsonValue& value);

// Ids of tokens: every item an integer of 32 bits.
absl::StatusOr<std::vector<uint32_t>> ReadIds(absl::string_view path, const JsonValue& array);

}  // namespace conclave
