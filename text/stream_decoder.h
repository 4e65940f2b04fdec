#pragma once

#include <cstdint>
#include <string>

#include "text/utf8.h"
#include "text/vocabulary.h"

namespace conclave {

// Token ids of one answer to text, id by id, never cutting a character in two. The concatenation
// of everything returned equals Tokenizer::Decode of all the ids, whatever they are.
class StreamDecoder {
 public:
  // `vocabulary` must outlive this.
  explicit StreamDecoder(const Vocabulary* vocabulary, bool skip_special = false)
      : vocabulary_(vocabulary), skip_special_(skip_special) {}

  // The text that is certain once `id` is known: valid UTF-8, maybe empty.
  std::string Push(uint32_t id);
  // The end of the ids: U+FFFD if the last character is incomplete, else empty.
  std::string Flush();

 private:
  const Vocabulary* vocabulary_;
  bool skip_special_;
  Utf8Repairer repairer_;
};

}  // namespace conclave
