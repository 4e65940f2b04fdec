#include "text/vocabulary.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "text/byte_pair_encoder.h"
#include "text/vocabulary_builder.h"

namespace conclave {

absl::string_view Vocabulary::Bytes(uint32_t id) const {
  if (id >= flags_.size()) return absl::string_view();
  return absl::string_view(bytes_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
}

std::optional<uint32_t> Vocabulary::IdOfAdded(absl::string_view content) const {
  const auto it = added_ids_.find(content);
  if (it == added_ids_.end()) return std::nullopt;
  return it->second;
}

absl::Status VocabularyBuilder::Add(uint32_t id, std::string bytes) {
  if (id >= kMaxVocabularySize) {
    return errors::OutOfRange("token id", id, absl::StrCat("0..", kMaxVocabularySize - 1));
  }
  if (id >= bytes_.size()) {
    bytes_.resize(id + 1);
    flags_.resize(id + 1);
  }
  if ((flags_[id] & Vocabulary::kPresent) != 0 && bytes_[id] != bytes) {
    return absl::InvalidArgumentError(absl::StrCat("two tokens have id ", id));
  }
  bytes_[id] = std::move(bytes);
  flags_[id] |= Vocabulary::kPresent;
  return absl::OkStatus();
}

absl::Status VocabularyBuilder::AddAdded(AddedToken token) {
  RETURN_IF_ERROR(Add(token.id, token.content));
  if (token.content.empty()) return absl::InvalidArgumentError("an added token is empty");
  flags_[token.id] |= Vocabulary::kAdded;
  if (token.special) flags_[token.id] |= Vocabulary::kSpecial;
  added_[token.id] = std::move(token);
  return absl::OkStatus();
}

Vocabulary VocabularyBuilder::Build() && {
  Vocabulary vocabulary;
  size_t num_bytes = 0;
  for (const std::string& bytes : bytes_) num_bytes += bytes.size();
  vocabulary.bytes_.reserve(num_bytes);
  vocabulary.offsets_.reserve(bytes_.size() + 1);
  for (const std::string& bytes : bytes_) {
    vocabulary.offsets_.push_back(static_cast<uint32_t>(vocabulary.bytes_.size()));
    vocabulary.bytes_ += bytes;
  }
  vocabulary.offsets_.push_back(static_cast<uint32_t>(vocabulary.bytes_.size()));
  vocabulary.flags_ = std::move(flags_);
  for (auto& [id, token] : added_) {
    vocabulary.added_ids_[token.content] = id;
    vocabulary.added_tokens_.push_back(std::move(token));
  }
  return vocabulary;
}

}  // namespace conclave
