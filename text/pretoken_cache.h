#pragma once

#include <array>
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
  static constexpr size_t kMaxKeyBytes = 31;
  static constexpr size_t kMaxIds = 7;

  // 2^15 slots of 64 bytes, one cache line each: 2 MiB.
  PretokenCache() : slots_(size_t{1} << 15) {}

  // A pretoken of 1..kMaxKeyBytes bytes: the bytes, zeros, and the length in the last byte.
  struct Key {
    std::array<uint64_t, 4> words;
    size_t slot;
  };
  // `readable` bytes may be read from pretoken.data(): with 32 the key is made without a loop.
  Key MakeKey(absl::string_view pretoken, size_t readable) const {
    Key key = {};
    const size_t length = pretoken.size();
    if (readable >= 32) {
      std::memcpy(key.words.data(), pretoken.data(), 32);
      for (size_t i = 0; i < 4; ++i) {
        const size_t begin = i * 8;
        if (length <= begin) {
          key.words[i] = 0;
        } else if (length < begin + 8) {
          key.words[i] &= (uint64_t{1} << 8 * (length - begin)) - 1;
        }
      }
    } else {
      std::memcpy(key.words.data(), pretoken.data(), length);
    }
    key.words[3] |= uint64_t{length} << 56;
    uint64_t hash = (key.words[0] ^ (key.words[1] * 0x9E3779B97F4A7C15u)) * 0xBF58476D1CE4E5B9u;
    hash ^= hash >> 29;
    hash = (hash ^ key.words[2] ^ (key.words[3] * 0x94D049BB133111EBu)) * 0x9E3779B97F4A7C15u;
    key.slot = (hash ^ hash >> 32) * 0xD6E8FEB86659FD93u >> 49;
    return key;
  }

  // Appends the ids and returns true if they are known.
  bool Find(const Key& key, std::vector<uint32_t>* ids) const {
    const Slot& slot = slots_[key.slot];
    if (slot.words != key.words) return false;
    // The usual one or two ids without a call.
    for (size_t i = 0; i < slot.num_ids; ++i) ids->push_back(slot.ids[i]);
    return true;
  }

  // num_ids <= kMaxIds.
  void Put(const Key& key, const uint32_t* ids, size_t num_ids) {
    Slot& slot = slots_[key.slot];
    slot.words = key.words;
    slot.num_ids = static_cast<uint32_t>(num_ids);
    std::memcpy(slot.ids, ids, num_ids * sizeof(uint32_t));
  }

 private:
  struct alignas(64) Slot {
    std::array<uint64_t, 4> words = {};  // all zero: empty; no key is, for its length is in it
    uint32_t ids[kMaxIds] = {};
    uint32_t num_ids = 0;
  };
  static_assert(sizeof(Slot) == 64);
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "MakeKey masks the upper bytes");

  std::vector<Slot> slots_;
};

}  // namespace conclave
