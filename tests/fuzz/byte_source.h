#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace conclave {

// The bytes of a fuzzer's input, taken from the front. Past the end there are zeros.
class ByteSource {
 public:
  ByteSource(const uint8_t* data, size_t size)
      : bytes_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return bytes_.empty(); }
  uint8_t Byte() {
    if (bytes_.empty()) return 0;
    const auto byte = static_cast<uint8_t>(bytes_.front());
    bytes_.remove_prefix(1);
    return byte;
  }
  // A number below `bound` (1..65536), of as few bytes as it takes.
  uint32_t Below(uint32_t bound) {
    uint32_t value = Byte();
    if (bound > 256) value = value << 8 | Byte();
    return value % bound;
  }
  absl::string_view Rest() const { return bytes_; }

 private:
  absl::string_view bytes_;
};

// `text` cut into consecutive pieces of 1..16 bytes, or now and then of up to 256; `seed` decides
// where.
inline std::vector<std::string> CutAnywhere(absl::string_view text, uint32_t seed) {
  std::vector<std::string> pieces;
  uint32_t state = seed * 2654435761u + 1;
  while (!text.empty()) {
    state = state * 1664525u + 1013904223u;
    const size_t size = 1 + (state >> 24) % ((state >> 16) % 8 == 0 ? 256 : 16);
    pieces.emplace_back(text.substr(0, size));
    text.remove_prefix(pieces.back().size());
  }
  return pieces;
}

}  // namespace conclave
