#include "text/utf8.h"

#include <cstdint>
#include <cstring>

namespace conclave {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

uint8_t ByteAt(absl::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

// Bytes of the character that starts with `lead`; 0 if no character does.
int SequenceLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

// Whether `byte` may be byte number `position` (from 1) after `lead`. Only the second byte's range
// depends on the lead: overlong forms, surrogates and values above U+10FFFF are excluded there.
bool MayFollow(uint8_t lead, int position, uint8_t byte) {
  if (position > 1) return byte >= 0x80 && byte <= 0xBF;
  switch (lead) {
    case 0xE0:
      return byte >= 0xA0 && byte <= 0xBF;
    case 0xED:
      return byte >= 0x80 && byte <= 0x9F;
    case 0xF0:
      return byte >= 0x90 && byte <= 0xBF;
    case 0xF4:
      return byte >= 0x80 && byte <= 0x8F;
    default:
      return byte >= 0x80 && byte <= 0xBF;
  }
}

}  // namespace

CodePoint DecodeValidUtf8(absl::string_view text) {
  const uint8_t lead = ByteAt(text, 0);
  if (lead < 0x80) return {lead, 1};
  const auto tail = [&text](size_t i) { return char32_t{ByteAt(text, i)} & 0x3F; };
  if (lead < 0xE0) return {(lead & 0x1Fu) << 6 | tail(1), 2};
  if (lead < 0xF0) return {(lead & 0x0Fu) << 12 | tail(1) << 6 | tail(2), 3};
  return {(lead & 0x07u) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4};
}

void AppendUtf8(char32_t code_point, std::string* out) {
  const auto tail = [code_point](int shift) {
    return static_cast<char>(0x80 | (code_point >> shift & 0x3F));
  };
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->append({static_cast<char>(0xC0 | code_point >> 6), tail(0)});
  } else if (code_point < 0x10000) {
    out->append({static_cast<char>(0xE0 | code_point >> 12), tail(6), tail(0)});
  } else {
    out->append({static_cast<char>(0xF0 | code_point >> 18), tail(12), tail(6), tail(0)});
  }
}

size_t ValidUtf8Prefix(absl::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    if (i + 8 <= text.size()) {
      uint64_t word;
      std::memcpy(&word, text.data() + i, 8);
      if ((word & 0x8080808080808080u) == 0) {
        i += 8;
        continue;
      }
    }
    const uint8_t lead = ByteAt(text, i);
    const size_t length = static_cast<size_t>(SequenceLength(lead));
    if (length == 0 || i + length > text.size()) return i;
    for (size_t k = 1; k < length; ++k) {
      if (!MayFollow(lead, static_cast<int>(k), ByteAt(text, i + k))) return i;
    }
    i += length;
  }
  return i;
}

void Utf8Repairer::Append(absl::string_view bytes, std::string* out) {
  size_t i = 0;
  while (i < bytes.size()) {
    if (num_held_ == 0) {
      const size_t valid = ValidUtf8Prefix(bytes.substr(i));
      out->append(bytes.data() + i, valid);
      i += valid;
      if (i == bytes.size()) return;
      const int length = SequenceLength(ByteAt(bytes, i));
      if (length == 0) {
        out->append(kReplacement.data(), kReplacement.size());
      } else {
        held_[num_held_++] = bytes[i];
      }
      ++i;
      continue;
    }
    const uint8_t lead = static_cast<uint8_t>(held_[0]);
    if (!MayFollow(lead, num_held_, ByteAt(bytes, i))) {
      Flush(out);  // the byte itself starts anew
      continue;
    }
    held_[num_held_++] = bytes[i++];
    if (num_held_ == SequenceLength(lead)) {
      out->append(held_, static_cast<size_t>(num_held_));
      num_held_ = 0;
    }
  }
}

void Utf8Repairer::Flush(std::string* out) {
  if (num_held_ > 0) out->append(kReplacement.data(), kReplacement.size());
  num_held_ = 0;
}

}  // namespace conclave
