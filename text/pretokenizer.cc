#include "text/pretokenizer.h"

#include <array>
#include <cstdint>

#include "text/utf8.h"

namespace conclave {
namespace {

// Classes of the pattern; CR and LF are apart from other whitespace.
enum Class : uint8_t { kOther, kLetter, kNumber, kSpace, kNewline, kNotAscii };

constexpr std::array<uint8_t, 256> MakeByteClasses() {
  std::array<uint8_t, 256> classes = {};
  for (int c = 0; c < 256; ++c) {
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool is_space = c == ' ' || c == '\t' || c == '\v' || c == '\f';
    classes[static_cast<size_t>(c)] = c >= 0x80                ? kNotAscii
                                      : is_letter              ? kLetter
                                      : c >= '0' && c <= '9'   ? kNumber
                                      : c == '\r' || c == '\n' ? kNewline
                                      : is_space               ? kSpace
                                                               : kOther;
  }
  return classes;
}
constexpr std::array<uint8_t, 256> kByteClasses = MakeByteClasses();

// Walks over the characters of a text.
class Scanner {
 public:
  Scanner(const UnicodeProperties& unicode, absl::string_view text)
      : unicode_(unicode), begin_(text.data()), end_(text.data() + text.size()) {}

  struct Char {
    Class char_class;
    size_t num_bytes;  // 0 at the end of the text
  };

  Char At(size_t offset) const {
    const char* p = begin_ + offset;
    if (p >= end_) return {kOther, 0};
    const uint8_t byte_class = kByteClasses[static_cast<uint8_t>(*p)];
    if (byte_class != kNotAscii) return {static_cast<Class>(byte_class), 1};
    const CodePoint code_point =
        DecodeValidUtf8(absl::string_view(p, static_cast<size_t>(end_ - p)));
    return {static_cast<Class>(unicode_.Of(code_point.value).char_class()),
            static_cast<size_t>(code_point.num_bytes)};
  }

  // End of the run of `char_class` that starts at `offset`; `offset` if there is none.
  size_t SkipRun(Class char_class, size_t offset) const {
    const size_t size = static_cast<size_t>(end_ - begin_);
    while (offset < size) {
      const uint8_t byte_class = kByteClasses[static_cast<uint8_t>(begin_[offset])];
      if (byte_class == char_class) {
        ++offset;
        continue;
      }
      if (byte_class != kNotAscii) return offset;
      const Char next = At(offset);
      if (next.char_class != char_class) return offset;
      offset += next.num_bytes;
    }
    return offset;
  }

  // \s+ from `offset`, which is whitespace: with a line end up to the last one; else all of it at
  // the end of the text; else all but the last character, which goes with what follows it.
  size_t EndOfSpaces(size_t offset) const {
    size_t end = offset;
    size_t last_char = offset;
    size_t after_newline = 0;
    while (true) {
      const Char next = At(end);
      if (next.num_bytes == 0) return after_newline != 0 ? after_newline : end;
      if (next.char_class != kSpace && next.char_class != kNewline) break;
      last_char = end;
      end += next.num_bytes;
      if (next.char_class == kNewline) after_newline = end;
    }
    if (after_newline != 0) return after_newline;
    return last_char > offset ? last_char : end;
  }

  // Bytes of the contraction that starts with the apostrophe at the start; 0 if none does.
  size_t ContractionLength() const {
    const size_t size = static_cast<size_t>(end_ - begin_);
    if (size < 2) return 0;
    const auto lower = [this](size_t i) { return static_cast<char>(begin_[i] | 0x20); };
    switch (lower(1)) {
      case 's':
      case 't':
      case 'm':
      case 'd':
        return 2;
      case 'r':
      case 'v':
        return size >= 3 && lower(2) == 'e' ? 3 : 0;
      case 'l':
        return size >= 3 && lower(2) == 'l' ? 3 : 0;
      default:
        break;
    }
    // U+017F, the long s, is an s to a pattern that ignores case.
    return size >= 3 && begin_[1] == '\xC5' && begin_[2] == '\xBF' ? 3 : 0;
  }

 private:
  const UnicodeProperties& unicode_;
  const char* begin_;
  const char* end_;
};

}  // namespace

size_t PretokenLength(const UnicodeProperties& unicode, absl::string_view text) {
  const Scanner scanner(unicode, text);
  if (text[0] == '\'') {
    const size_t contraction = scanner.ContractionLength();
    if (contraction != 0) return contraction;
  }
  const Scanner::Char first = scanner.At(0);
  if (first.char_class == kLetter) return scanner.SkipRun(kLetter, first.num_bytes);
  if (first.char_class == kNumber) return first.num_bytes;
  if (first.char_class == kNewline) return scanner.EndOfSpaces(0);

  const Scanner::Char second = scanner.At(first.num_bytes);
  if (second.num_bytes != 0 && second.char_class == kLetter) {
    return scanner.SkipRun(kLetter, first.num_bytes + second.num_bytes);
  }
  const bool space_then_other =
      text[0] == ' ' && second.num_bytes != 0 && second.char_class == kOther;
  if (first.char_class == kOther || space_then_other) {
    return scanner.SkipRun(kNewline, scanner.SkipRun(kOther, first.num_bytes));
  }
  return scanner.EndOfSpaces(0);
}

}  // namespace conclave
