#include "text/byte_pair_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

#include "text/pretoken_cache.h"

namespace conclave {
namespace {

using testing::ElementsAre;

std::array<uint32_t, 256> ByteIds() {
  std::array<uint32_t, 256> ids;
  for (uint32_t i = 0; i < 256; ++i) ids[i] = i;
  return ids;
}

// The definition: the lowest rank anywhere, leftmost, again and again.
std::vector<uint32_t> PlainEncode(const std::vector<Merge>& merges, const std::string& bytes) {
  std::map<std::pair<uint32_t, uint32_t>, size_t> ranks;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    ranks[{merges[rank].left, merges[rank].right}] = rank;
  }
  std::vector<uint32_t> ids;
  for (const char c : bytes) ids.push_back(static_cast<uint8_t>(c));
  while (true) {
    size_t best_rank = merges.size(), best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = ranks.find({ids[i], ids[i + 1]});
      if (it != ranks.end() && it->second < best_rank) best_rank = it->second, best = i;
    }
    if (best_rank == merges.size()) return ids;
    ids[best] = merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(BytePairEncoderTest, EqualsTheDefinitionOnRandomMerges) {
  std::mt19937 random(3);
  for (int round = 0; round < 40; ++round) {
    // Random merges of what there is so far: a small alphabet makes them overlap a lot.
    std::vector<Merge> merges;
    for (uint32_t id = 256; id < 256 + 60; ++id) {
      const auto any = [&] {
        const uint32_t pick = static_cast<uint32_t>(random()) % (id - 256 + 3);
        return pick < 3 ? 'a' + pick : 256 + pick - 3;
      };
      merges.push_back({any(), any(), id});
    }
    const BytePairEncoder encoder(ByteIds(), merges);
    for (const size_t size : {0, 1, 2, 3, 7, 40, 95, 96, 97, 98, 300}) {
      std::string bytes;
      while (bytes.size() < size) bytes += static_cast<char>('a' + random() % 3);
      std::vector<uint32_t> ids = {7};  // appends
      encoder.Encode(bytes, &ids);
      std::vector<uint32_t> wanted = PlainEncode(merges, bytes);
      wanted.insert(wanted.begin(), 7);
      ASSERT_EQ(ids, wanted) << bytes;
    }
  }
}

TEST(BytePairEncoderTest, WithoutMergesEveryByteIsAToken) {
  const BytePairEncoder encoder(ByteIds(), {});
  std::vector<uint32_t> ids;
  encoder.Encode("a\xFF", &ids);
  EXPECT_THAT(ids, ElementsAre('a', 0xFF));
}

TEST(PretokenCacheTest, TellsKeysApartWhateverFollowsThem) {
  PretokenCache cache;
  std::vector<uint32_t> ids;
  const std::string text = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  const auto words = [](const PretokenCache::Key& key) {
    return std::vector<uint64_t>(std::begin(key.words), std::end(key.words));
  };
  for (size_t length = 1; length <= PretokenCache::kMaxKeyBytes; ++length) {
    const absl::string_view word = absl::string_view(text).substr(0, length);
    const PretokenCache::Key fast = cache.MakeKey(word, text.size());
    const PretokenCache::Key slow = cache.MakeKey(word, length);
    EXPECT_EQ(words(fast), words(slow)) << length;
    EXPECT_EQ(fast.slot, slow.slot);
    EXPECT_FALSE(cache.Find(fast, &ids)) << length;
    const uint32_t id = static_cast<uint32_t>(length);
    cache.Put(fast, &id, 1);
    ids.clear();
    EXPECT_TRUE(cache.Find(slow, &ids));
    EXPECT_THAT(ids, ElementsAre(id));
    ids.clear();
  }
  // Zero bytes count: "a" is not "a\0".
  EXPECT_NE(words(cache.MakeKey("a", 1)), words(cache.MakeKey(absl::string_view("a\0", 2), 2)));
}

}  // namespace
}  // namespace conclave
