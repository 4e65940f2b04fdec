#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace conclave {

// A token that is matched in the text before any splitting: control tokens and markup.
struct AddedToken {
  std::string content;
  uint32_t id = 0;
  bool special = false;  // left out of text decoded with skip_special; <think> is not special
};

// The bytes of every token id. All a process needs that never sees text (the worker: where a
// UTF-8 character ends). Immutable, so safe to share between threads.
class Vocabulary {
 public:
  // Largest real id + 1: 151,669 for Qwen3. The model's embedding may have more (padding) rows,
  // whose ids must never be sampled.
  size_t size() const { return flags_.size(); }

  // Raw bytes, not the alphabet of tokenizer.json; not always whole UTF-8 characters. Empty for
  // an id that no token has. Valid as long as this vocabulary.
  absl::string_view Bytes(uint32_t id) const;

  bool IsAdded(uint32_t id) const { return id < flags_.size() && (flags_[id] & kAdded) != 0; }
  bool IsSpecial(uint32_t id) const { return id < flags_.size() && (flags_[id] & kSpecial) != 0; }

  // Id of the added token with exactly this content, as "</think>".
  std::optional<uint32_t> IdOfAdded(absl::string_view content) const;
  // In ascending id.
  const std::vector<AddedToken>& added_tokens() const { return added_tokens_; }

 private:
  friend class VocabularyBuilder;
  enum Flag : uint8_t { kPresent = 1, kAdded = 2, kSpecial = 4 };

  std::string bytes_;              // of all tokens, in ascending id
  std::vector<uint32_t> offsets_;  // [size() + 1] into bytes_
  std::vector<uint8_t> flags_;     // [size()]
  std::vector<AddedToken> added_tokens_;
  absl::flat_hash_map<std::string, uint32_t> added_ids_;
};

// Reads only the tokens of a tokenizer.json (byte-level BPE). NotFound if there is no such file,
// DataLoss naming what is broken, FailedPrecondition if it is not byte-level BPE.
absl::StatusOr<Vocabulary> LoadVocabulary(const std::string& path);

}  // namespace conclave
