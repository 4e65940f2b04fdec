#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json_fwd.hpp"

namespace conclave {

// The whole file. NotFound; ResourceExhausted past limits::kMaxJsonFileBytes; Internal if it
// cannot be read.
absl::StatusOr<std::string> ReadTextFile(const std::string& path);

// InvalidArgument saying where the text stops being JSON, or that it is no object.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text);

// Typed reads of one JSON object. Each leaves *value alone if the field is absent or null;
// InvalidArgument "field is <value>, want <type>" if it has another type. The object must outlive
// this; prefix is put before names in messages ("rope_scaling.").
class JsonFields {
 public:
  explicit JsonFields(const nlohmann::json& object, std::string prefix = "");

  bool Has(const char* name) const;  // present and not null
  absl::Status Require(const char* name) const;
  absl::Status Read(const char* name, int* value) const;
  absl::Status Read(const char* name, double* value) const;  // integers too; finite
  absl::Status Read(const char* name, bool* value) const;
  absl::Status Read(const char* name, std::string* value) const;
  absl::Status Read(const char* name, std::vector<int>* value) const;  // one integer or a list
  const nlohmann::json& operator[](const char* name) const;            // Has(name)

  // InvalidArgument "name is <its JSON>, want <want>".
  absl::Status Bad(const char* name, absl::string_view want) const;

 private:
  const nlohmann::json& object_;
  const std::string prefix_;
};

}  // namespace conclave
