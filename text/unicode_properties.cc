#include "text/unicode_properties.h"

#include <map>

#include "common/check.h"
#include "text/unicode_tables.h"

namespace conclave {

const UnicodeProperties& UnicodeProperties::Get() {
  static const UnicodeProperties* const properties = new UnicodeProperties();
  return *properties;
}

UnicodeProperties::UnicodeProperties() {
  std::map<Block, size_t> seen;
  size_t run = 0;
  for (size_t block_idx = 0; block_idx < block_of_.size(); ++block_idx) {
    Block block;
    for (size_t i = 0; i < block.size(); ++i) {
      const uint32_t code_point = static_cast<uint32_t>(block_idx << 8 | i);
      while (run + 1 < unicode_tables::kNumPropertyRuns &&
             unicode_tables::kPropertyRuns[run + 1].first <= code_point) {
        ++run;
      }
      block[i] = unicode_tables::kPropertyRuns[run].properties;
    }
    const auto [it, is_new] = seen.emplace(block, blocks_.size());
    if (is_new) blocks_.push_back(block);
    CHECK_LT(it->second, 256u) << "distinct blocks no longer fit block_of_";
    block_of_[block_idx] = static_cast<uint8_t>(it->second);
  }
  for (size_t i = 0; i < unicode_tables::kDecompositionsLength;) {
    const char32_t head = unicode_tables::kDecompositions[i];
    const size_t length = head >> 24;
    decompositions_[head & 0xffffff] =
        absl::MakeConstSpan(&unicode_tables::kDecompositions[i + 1], length);
    i += 1 + length;
  }
  for (size_t i = 0; i < unicode_tables::kNumCompositions; ++i) {
    const unicode_tables::Composition& pair = unicode_tables::kCompositions[i];
    compositions_[uint64_t{pair.first} << 32 | pair.second] = pair.composed;
  }
}

absl::Span<const char32_t> UnicodeProperties::Decomposition(char32_t code_point) const {
  const auto it = decompositions_.find(code_point);
  return it == decompositions_.end() ? absl::Span<const char32_t>() : it->second;
}

char32_t UnicodeProperties::Composition(char32_t first, char32_t second) const {
  const auto it = compositions_.find(uint64_t{first} << 32 | second);
  return it == compositions_.end() ? 0 : it->second;
}

}  // namespace conclave
