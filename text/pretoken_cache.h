#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/strings/string_view.h"

namespace conclave {

// Ids of pretokens met before. Bounded: a fixed table in which a newcomer takes the place of what
// hashes to the same slot. Not thread-safe: one caller at a time.
class PretokenCache {
 public:
  static constexpr size_t kMaxKeyBytes = 47;
  static constexpr size_t kMaxIds = 19;

  // 2^15 slots of 128 bytes, of which a short pretoken touches the first cache line: 4 MiB.
  PretokenCache() : slots_(size_t{1} << kLogSlots) {}

  // A pretoken of 1..kMaxKeyBytes bytes: the bytes, zeros, and the length in the last byte.
  struct Key {
    uint64_t words[6];
    size_t slot;
    size_t length() const { return words[5] >> 56; }
  };
  // `readable` bytes may be read from pretoken.data(): with 16 and more, short keys are made
  // without a loop.
  Key MakeKey(absl::string_view pretoken, size_t readable) const {
    Key key = {};
    const size_t length = pretoken.size();
    if (length <= 16 && readable >= 16) {
      std::memcpy(key.words, pretoken.data(), 16);
      // Shifting a word by 64 is undefined, so the mask is made in two steps.
      if (length <= 8) {
        key.words[0] &= (uint64_t{2} << (8 * length - 1)) - 1;
        key.words[1] = 0;
      } else {
        key.words[1] &= (uint64_t{2} << (8 * (length - 8) - 1)) - 1;
      }
    } else {
      std::memcpy(key.words, pretoken.data(), length);
    }
    key.words[5] |= uint64_t{length} << 56;
    uint64_t hash = Mix(key.words[0], key.words[1] ^ uint64_t{length} << 56);
    if (length > 16) {
      for (size_t i = 2; i < 6; ++i) hash = Mix(hash, key.words[i]);
    }
    key.slot = hash >> (64 - kLogSlots);
    return key;
  }

  // Appends the ids and returns true if they are known.
  bool Find(const Key& key, std::vector<uint32_t>* ids) const {
    const Slot& slot = slots_[key.slot];
    if (!Equal(slot, key)) return false;
    // The usual one or two ids without a call.
    for (size_t i = 0; i < slot.num_ids; ++i) ids->push_back(slot.ids[i]);
    return true;
  }

  // num_ids <= kMaxIds.
  void Put(const Key& key, const uint32_t* ids, size_t num_ids) {
    Slot& slot = slots_[key.slot];
    std::memcpy(slot.words, key.words, sizeof(key.words));
    slot.num_ids = static_cast<uint32_t>(num_ids);
    std::memcpy(slot.ids, ids, num_ids * sizeof(uint32_t));
  }

 private:
  static constexpr int kLogSlots = 15;

  struct alignas(64) Slot {
    uint64_t words[6] = {};  // all zero: empty; no key is, for its length is in it
    uint32_t num_ids = 0;
    uint32_t ids[kMaxIds] = {};
  };
  static_assert(sizeof(Slot) == 128);
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "MakeKey masks the upper bytes");

  static uint64_t Mix(uint64_t a, uint64_t b) {
    a = (a ^ b * 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
    return (a ^ a >> 32) * 0x94D049BB133111EBu;
  }

  static bool Equal(const Slot& slot, const Key& key) {
    const auto differs = [&](size_t i) { return slot.words[i] ^ key.words[i]; };
    if ((differs(0) | differs(1) | differs(5)) != 0) return false;
    return key.length() <= 16 || (differs(2) | differs(3) | differs(4)) == 0;
  }

  std::vector<Slot> slots_;
};

}  // namespace conclave
