#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"

namespace conclave {

// What the split pattern tells apart: \p{L}, \p{N}, \s, and all else.
enum class CharClass : uint8_t { kOther = 0, kLetter = 1, kNumber = 2, kSpace = 3 };

// Properties of a code point, packed.
class CharProperties {
 public:
  explicit CharProperties(uint16_t bits) : bits_(bits) {}
  CharClass char_class() const { return static_cast<CharClass>(bits_ & 3); }
  // Normalisation may change it, or join it with what is before it.
  bool nfc_suspect() const { return (bits_ & 4) != 0; }
  int combining_class() const { return bits_ >> 8; }

 private:
  uint16_t bits_;
};

// The Unicode data of the tokenizer: classes of Unicode 16.0, normalisation of Unicode 9.0.
class UnicodeProperties {
 public:
  // Built on first use (about 1 ms), then shared by all threads.
  static const UnicodeProperties& Get();

  // code_point <= U+10FFFF.
  CharProperties Of(char32_t code_point) const {
    return CharProperties(blocks_[block_of_[code_point >> 8]][code_point & 0xff]);
  }

  // Complete canonical decomposition; empty if the code point has none. Not of Hangul syllables.
  absl::Span<const char32_t> Decomposition(char32_t code_point) const;
  // What the two compose to; 0 if they do not. Not of Hangul.
  char32_t Composition(char32_t first, char32_t second) const;

 private:
  using Block = std::array<uint16_t, 256>;
  UnicodeProperties();

  std::array<uint8_t, 0x1100> block_of_;
  std::vector<Block> blocks_;  // distinct: 166 of 4,352
  absl::flat_hash_map<char32_t, absl::Span<const char32_t>> decompositions_;
  absl::flat_hash_map<uint64_t, char32_t> compositions_;  // by first << 32 | second
};

}  // namespace conclave
