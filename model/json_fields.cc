#include "model/json_fields.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace conclave {
namespace {

// A value as messages print it; a hostile file must not make them large.
std::string Shown(const nlohmann::json& value) {
  constexpr size_t kMaxShown = 120;
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = absl::StrCat(text.substr(0, kMaxShown), "...");
  return text;
}

bool ReadInt(const nlohmann::json& value, int* out) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int>::max())) {
    return false;
  }
  const int64_t number = value.get<int64_t>();
  if (number < std::numeric_limits<int>::min()) return false;
  *out = static_cast<int>(number);
  return true;
}

}  // namespace

absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    if (errno == ENOENT) return absl::NotFoundError(absl::StrCat("no file ", path));
    return absl::InternalError(absl::StrCat("cannot open ", path, ": ", std::strerror(errno)));
  }
  std::string text;
  std::vector<char> chunk(1 << 16);
  while (file.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || file.gcount() > 0) {
    text.append(chunk.data(), static_cast<size_t>(file.gcount()));
    if (text.size() > limits::kMaxJsonFileBytes) {
      return absl::ResourceExhaustedError(absl::StrCat(path, " has more than ",
                                                       limits::kMaxJsonFileBytes,
                                                       " bytes, the most read of a JSON file"));
    }
  }
  if (file.bad()) {
    return absl::InternalError(absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
  }
  return text;
}

absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text) {
  try {
    nlohmann::json object = nlohmann::json::parse(text.begin(), text.end());
    if (!object.is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the JSON text is ", object.type_name(), ", want an object"));
    }
    return object;
  } catch (const nlohmann::json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", e.what()));
  }
}

JsonFields::JsonFields(const nlohmann::json& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {}

bool JsonFields::Has(const char* name) const {
  const auto it = object_.find(name);
  return it != object_.end() && !it->is_null();
}

const nlohmann::json& JsonFields::operator[](const char* name) const { return *object_.find(name); }

absl::Status JsonFields::Require(const char* name) const {
  if (Has(name)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(prefix_, name, " is missing"));
}

absl::Status JsonFields::Bad(const char* name, absl::string_view want) const {
  return errors::OutOfRange(absl::StrCat(prefix_, name), Shown((*this)[name]), want);
}

absl::Status JsonFields::Read(const char* name, int* value) const {
  if (!Has(name) || ReadInt((*this)[name], value)) return absl::OkStatus();
  return Bad(name, "a 32-bit integer");
}

absl::Status JsonFields::Read(const char* name, double* value) const {
  if (!Has(name)) return absl::OkStatus();
  const nlohmann::json& field = (*this)[name];
  if (!field.is_number() || !std::isfinite(field.get<double>())) return Bad(name, "a number");
  *value = field.get<double>();
  return absl::OkStatus();
}

absl::Status JsonFields::Read(const char* name, bool* value) const {
  if (!Has(name)) return absl::OkStatus();
  const nlohmann::json& field = (*this)[name];
  if (!field.is_boolean()) return Bad(name, "true or false");
  *value = field.get<bool>();
  return absl::OkStatus();
}

absl::Status JsonFields::Read(const char* name, std::string* value) const {
  if (!Has(name)) return absl::OkStatus();
  const nlohmann::json& field = (*this)[name];
  if (!field.is_string()) return Bad(name, "a string");
  *value = field.get<std::string>();
  return absl::OkStatus();
}

absl::Status JsonFields::Read(const char* name, std::vector<int>* value) const {
  if (!Has(name)) return absl::OkStatus();
  const nlohmann::json& field = (*this)[name];
  std::vector<int> numbers(field.is_array() ? field.size() : 1);
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (!ReadInt(field.is_array() ? field[i] : field, &numbers[i])) {
      return Bad(name, "32-bit integers");
    }
  }
  *value = std::move(numbers);
  return absl::OkStatus();
}

}  // namespace conclave
