#include "model/generation_config.h"

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "model/json_fields.h"
#include "nlohmann/json.hpp"

namespace conclave {
namespace {

template <typename T>
absl::Status ReadOptional(const JsonFields& fields, const char* name, std::optional<T>* value) {
  if (!fields.Has(name)) return absl::OkStatus();
  T read{};
  RETURN_IF_ERROR(fields.Read(name, &read));
  *value = read;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GenerationConfig> ParseGenerationConfig(absl::string_view json) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(json));
  const JsonFields fields(object);
  GenerationConfig config;
  RETURN_IF_ERROR(ReadOptional(fields, "do_sample", &config.do_sample));
  RETURN_IF_ERROR(ReadOptional(fields, "temperature", &config.temperature));
  RETURN_IF_ERROR(ReadOptional(fields, "top_p", &config.top_p));
  RETURN_IF_ERROR(ReadOptional(fields, "top_k", &config.top_k));
  RETURN_IF_ERROR(ReadOptional(fields, "min_p", &config.min_p));
  RETURN_IF_ERROR(ReadOptional(fields, "repetition_penalty", &config.repetition_penalty));
  RETURN_IF_ERROR(fields.Read("eos_token_id", &config.eos_token_ids));
  if (config.temperature.value_or(1) < 0) return fields.Bad("temperature", "0 or more");
  if (config.top_p.value_or(1) <= 0 || config.top_p.value_or(1) > 1) {
    return fields.Bad("top_p", "above 0, at most 1");
  }
  if (config.top_k.value_or(0) < 0) return fields.Bad("top_k", "0 (all) or more");
  if (config.min_p.value_or(0) < 0 || config.min_p.value_or(0) > 1) {
    return fields.Bad("min_p", "0..1");
  }
  if (config.repetition_penalty.value_or(1) <= 0) {
    return fields.Bad("repetition_penalty", "above 0");
  }
  for (const int32_t id : config.eos_token_ids) {
    if (id < 0) return fields.Bad("eos_token_id", "0 or more");
  }
  return config;
}

absl::StatusOr<GenerationConfig> LoadGenerationConfig(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/generation_config.json");
  const absl::StatusOr<std::string> text = ReadTextFile(path);
  if (absl::IsNotFound(text.status())) return GenerationConfig{};
  RETURN_IF_ERROR(text.status());
  absl::StatusOr<GenerationConfig> config = ParseGenerationConfig(*text);
  if (config.ok()) return config;
  return absl::Status(config.status().code(), absl::StrCat(path, ": ", config.status().message()));
}

}  // namespace conclave
