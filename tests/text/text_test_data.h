#pragma once

#include <cstdint>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/check.h"
#include "text/json_text.h"
#include "text/tokenizer.h"

namespace conclave {

inline std::string TextDataPath(const std::string& name) {
  return std::string(CONCLAVE_TEXT_DATA_DIR) + "/" + name;
}

inline std::vector<std::string> ReadDataLines(const std::string& name) {
  std::ifstream file(TextDataPath(name));
  CHECK(file.good()) << name;
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  CHECK(!lines.empty()) << name;
  return lines;
}

// The records of a .jsonl file.
inline std::vector<JsonValue> ReadDataRecords(const std::string& name) {
  std::vector<JsonValue> records;
  for (const std::string& line : ReadDataLines(name)) {
    absl::StatusOr<JsonValue> record = ParseJson(line);
    CHECK(record.ok()) << name << ": " << record.status();
    records.push_back(*std::move(record));
  }
  return records;
}

inline const std::string& StringAt(const JsonValue& record, const std::string& key) {
  const JsonValue* value = record.Find(key);
  CHECK(value != nullptr && value->is_string()) << key << " in " << ToJson(record);
  return value->string_value();
}

inline std::vector<uint32_t> IdsAt(const JsonValue& record, const std::string& key = "ids") {
  const JsonValue* value = record.Find(key);
  CHECK(value != nullptr && value->is_array()) << key << " in " << ToJson(record);
  std::vector<uint32_t> ids;
  for (const JsonValue& id : value->items()) {
    ids.push_back(static_cast<uint32_t>(std::stoul(id.number_spelling())));
  }
  return ids;
}

// Qwen3's tokenizer, loaded once a process.
inline const Tokenizer& Qwen3Tokenizer() {
  static const Tokenizer* const tokenizer = [] {
    absl::StatusOr<std::unique_ptr<Tokenizer>> loaded = Tokenizer::Load(TextDataPath("qwen3"));
    CHECK(loaded.ok()) << loaded.status();
    return loaded->release();
  }();
  return *tokenizer;
}

// `text` in consecutive pieces of 1..max_piece bytes.
inline std::vector<std::string> RandomChunks(const std::string& text, size_t max_piece,
                                             std::mt19937* random) {
  std::vector<std::string> chunks;
  for (size_t i = 0; i < text.size(); i += chunks.back().size()) {
    chunks.push_back(text.substr(i, 1 + (*random)() % max_piece));
  }
  return chunks;
}

}  // namespace conclave
