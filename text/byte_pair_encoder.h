#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"

namespace conclave {

// Two neighbouring tokens become one. Earlier merges go first.
struct Merge {
  uint32_t left = 0;
  uint32_t right = 0;
  uint32_t result = 0;
};

// Ids and ranks are packed into one word of the pair table, which bounds both.
inline constexpr size_t kMaxVocabularySize = (size_t{1} << 20) - 1;
inline constexpr size_t kMaxMerges = (size_t{1} << 24) - 1;

// Byte-pair encoding of one pretoken: from one token per byte, the merge of lowest rank is applied,
// the leftmost on a tie, until none applies. Immutable.
class BytePairEncoder {
 public:
  // byte_ids[b] is the id of the token that is byte b alone. merges.size() <= kMaxMerges, every id
  // < kMaxVocabularySize. If a pair is listed twice, the later merge counts.
  BytePairEncoder(const std::array<uint32_t, 256>& byte_ids, const std::vector<Merge>& merges);

  // Appends the ids. O(n^2) for short pretokens, O(n log n) for long ones; never recursive.
  void Encode(absl::string_view bytes, std::vector<uint32_t>* ids) const;

 private:
  static constexpr uint32_t kNoRank = UINT32_MAX;

  uint32_t Rank(uint32_t left, uint32_t right) const;
  void EncodeShort(absl::string_view bytes, std::vector<uint32_t>* ids) const;
  void EncodeLong(absl::string_view bytes, std::vector<uint32_t>* ids) const;

  std::array<uint32_t, 256> byte_ids_;
  std::vector<uint32_t> results_;     // by rank
  std::vector<uint32_t> byte_ranks_;  // [256 * 256] rank of two bytes: the first step is a look-up
  // Open addressing, linear probing, at most half full. A slot is left << 44 | right << 24 | rank.
  std::vector<uint64_t> slots_;
  int slot_shift_ = 0;
};

}  // namespace conclave
