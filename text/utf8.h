#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace conclave {

// One code point of a valid UTF-8 text and the bytes it takes.
struct CodePoint {
  char32_t value = 0;
  int num_bytes = 0;
};

// Of a text known to be valid; `text` must not be empty.
CodePoint DecodeValidUtf8(absl::string_view text);
void AppendUtf8(char32_t code_point, std::string* out);

// Offset of the first byte that is not part of valid UTF-8; text.size() if all is valid.
size_t ValidUtf8Prefix(absl::string_view text);

// Turns bytes that arrive in pieces into valid UTF-8. Bytes that can no longer become a character
// come out as U+FFFD at once, one per maximal subpart (as WHATWG and Rust do); only a sequence
// that may still become a character is held back.
class Utf8Repairer {
 public:
  void Append(absl::string_view bytes, std::string* out);
  // The end of the bytes: U+FFFD if a sequence was left incomplete.
  void Flush(std::string* out);

 private:
  char held_[4];
  int num_held_ = 0;
};

}  // namespace conclave
