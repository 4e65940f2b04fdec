#include "worker/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <random>

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr int64_t kBlock = BlockPool::kBlockTokens;

// What a sequence has: tokens, all of them computed, and their blocks.
struct Table {
  std::vector<uint32_t> ids;
  std::vector<int32_t> blocks;
  CachedPrefix prefix;
};

std::vector<uint32_t> Ids(int64_t count, uint32_t first) {
  std::vector<uint32_t> ids(count);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

// Takes what is cached, "computes" the rest and caches it.
bool Compute(BlockPool& pool, std::vector<uint32_t> ids, Table& table) {
  table.ids = std::move(ids);
  pool.TakeCached(table.ids, table.prefix, table.blocks);
  const auto wanted = static_cast<int64_t>((table.ids.size() + kBlock - 1) / kBlock);
  if (!pool.Allocate(wanted - static_cast<int64_t>(table.blocks.size()), table.blocks)) {
    pool.Free(table.blocks);
    return false;
  }
  while ((table.prefix.num_blocks + 1) * kBlock <= static_cast<int64_t>(table.ids.size())) {
    const int64_t begin = table.prefix.num_blocks * kBlock;
    pool.Cache(absl::MakeConstSpan(table.ids).subspan(begin, kBlock), table.prefix, table.blocks);
  }
  return true;
}

TEST(BlockPoolTest, LowestFirstAndAllOrNothing) {
  BlockPool pool(3, /*keep_prefixes=*/true);
  std::vector<int32_t> a, b;
  EXPECT_TRUE(pool.Allocate(2, a));
  EXPECT_THAT(a, ElementsAre(0, 1));
  EXPECT_FALSE(pool.Allocate(2, b));
  EXPECT_THAT(b, IsEmpty());
  pool.Free(a);
  EXPECT_TRUE(pool.Allocate(3, b));
  EXPECT_THAT(b, ElementsAre(0, 1, 2));
}

TEST(BlockPoolTest, FindsAPrefixAgainAndSharesItsBlocks) {
  BlockPool pool(10, /*keep_prefixes=*/true);
  Table first;
  ASSERT_TRUE(Compute(pool, Ids(3 * kBlock + 5, 0), first));
  EXPECT_EQ(first.prefix.num_blocks, 3);
  EXPECT_EQ(pool.CountCached(Ids(3 * kBlock - 1, 0)), 2);
  pool.Free(first.blocks);
  EXPECT_EQ(pool.num_free(), 10);
  EXPECT_EQ(pool.num_unused_cached(), 3);

  std::vector<uint32_t> ids = Ids(3 * kBlock, 0);
  ids[2 * kBlock + 7] = 999;  // inside the third block
  Table a, b;
  pool.TakeCached(ids, a.prefix, a.blocks);
  EXPECT_THAT(a.blocks, ElementsAre(0, 1));
  pool.TakeCached(Ids(100, 0), b.prefix, b.blocks);
  EXPECT_THAT(b.blocks, ElementsAre(0, 1, 2));
  EXPECT_EQ(pool.num_free(), 7);
  pool.Free(b.blocks);
  EXPECT_EQ(pool.num_free(), 8) << "two are still used by the other";
}

TEST(BlockPoolTest, EqualBlocksBehindUnequalPrefixesAreNotEqual) {
  BlockPool pool(10, /*keep_prefixes=*/true);
  std::vector<uint32_t> ids = Ids(2 * kBlock, 0);
  Table first;
  ASSERT_TRUE(Compute(pool, ids, first));
  std::vector<uint32_t> other(ids.begin() + kBlock, ids.end());  // the second block, at the start
  EXPECT_EQ(pool.CountCached(other), 0);
  ids[0] = 77;
  EXPECT_EQ(pool.CountCached(ids), 0);
}

TEST(BlockPoolTest, TwoThatComputeTheSameEndUpWithOneBlock) {
  BlockPool pool(10, /*keep_prefixes=*/true);
  Table a, b;
  ASSERT_TRUE(pool.Allocate(1, a.blocks));
  ASSERT_TRUE(pool.Allocate(1, b.blocks));
  const std::vector<uint32_t> ids = Ids(kBlock, 0);
  pool.Cache(ids, a.prefix, a.blocks);
  pool.Cache(ids, b.prefix, b.blocks);
  EXPECT_EQ(a.blocks, b.blocks);
  EXPECT_EQ(a.prefix.serial, b.prefix.serial);
  EXPECT_EQ(pool.num_free(), 9);
  pool.Free(a.blocks);
  EXPECT_EQ(pool.num_free(), 9);
  pool.Free(b.blocks);
  EXPECT_EQ(pool.num_free(), 10);
}

TEST(BlockPoolTest, EvictsTheLongestUnusedAndThePrefixLast) {
  BlockPool pool(4, /*keep_prefixes=*/true);
  Table old, recent;
  ASSERT_TRUE(Compute(pool, Ids(2 * kBlock, 0), old));
  ASSERT_TRUE(Compute(pool, Ids(2 * kBlock, 5000), recent));
  pool.Free(old.blocks);
  pool.Free(recent.blocks);
  std::vector<int32_t> taken;
  const auto cached = [&](uint32_t first) { return pool.CountCached(Ids(2 * kBlock, first)); };
  for (const auto& [old_left, recent_left] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 2}, {0, 2}, {0, 1}, {0, 0}}) {
    ASSERT_TRUE(pool.Allocate(1, taken));
    EXPECT_EQ(cached(0), old_left);
    EXPECT_EQ(cached(5000), recent_left);
  }
  EXPECT_EQ(pool.num_evicted(), 4);
  EXPECT_FALSE(pool.Allocate(1, taken));
}

TEST(BlockPoolTest, KeepsNothingIfToldSo) {
  BlockPool pool(4, /*keep_prefixes=*/false);
  std::vector<int32_t> blocks;
  CachedPrefix prefix;
  ASSERT_TRUE(pool.Allocate(1, blocks));
  pool.Cache(Ids(kBlock, 0), prefix, blocks);
  EXPECT_EQ(prefix.num_blocks, 0);
  pool.Free(blocks);
  EXPECT_EQ(pool.num_unused_cached(), 0);
  EXPECT_EQ(pool.CountCached(Ids(kBlock, 0)), 0);
}

// Random sequences over few different ids, so that prefixes collide all the time. Beside the pool,
// a model of the memory: what each block was last computed to hold. A hit must hold exactly its ids
// and the ones before; a block in use must never be handed out.
TEST(BlockPoolTest, RandomUseNeverFindsAnythingFalse) {
  constexpr int kNumBlocks = 24;
  std::mt19937 random(7);
  BlockPool pool(kNumBlocks, /*keep_prefixes=*/true);
  std::map<int32_t, std::vector<uint32_t>> holds;  // block: all ids up to its end
  std::vector<Table> tables;
  int64_t hits = 0;
  for (int round = 0; round < 20000; ++round) {
    if (tables.size() > 4 || (!tables.empty() && random() % 3 == 0)) {
      const size_t victim = random() % tables.size();
      pool.Free(tables[victim].blocks);
      tables.erase(tables.begin() + static_cast<int64_t>(victim));
      continue;
    }
    std::vector<uint32_t> ids;
    for (uint64_t block = 0; block < 1 + random() % 6; ++block) {
      ids.insert(ids.end(), kBlock, random() % 2);
    }
    ids.resize(ids.size() - random() % kBlock);
    Table probe;
    probe.ids = ids;
    pool.TakeCached(ids, probe.prefix, probe.blocks);
    for (size_t i = 0; i < probe.blocks.size(); ++i, ++hits) {
      const std::vector<uint32_t> upto(ids.begin(), ids.begin() + (i + 1) * kBlock);
      ASSERT_EQ(holds[probe.blocks[i]], upto) << "round " << round << " block " << i;
    }
    pool.Free(probe.blocks);

    Table table;
    if (!Compute(pool, ids, table)) continue;
    for (size_t i = 0; i < table.blocks.size(); ++i) {
      const size_t end = std::min(ids.size(), (i + 1) * kBlock);
      holds[table.blocks[i]] = std::vector<uint32_t>(ids.begin(), ids.begin() + end);
    }
    tables.push_back(std::move(table));
    std::map<int32_t, std::vector<uint32_t>> in_use;
    for (const Table& other : tables) {
      for (size_t i = 0; i < other.blocks.size(); ++i) {
        const size_t end = std::min(other.ids.size(), (i + 1) * kBlock);
        const std::vector<uint32_t> upto(other.ids.begin(), other.ids.begin() + end);
        const auto [entry, added] = in_use.emplace(other.blocks[i], upto);
        ASSERT_TRUE(added || entry->second == upto) << "block " << other.blocks[i];
      }
    }
    ASSERT_EQ(pool.num_free(), kNumBlocks - static_cast<int64_t>(in_use.size()));
  }
  EXPECT_GT(hits, 1000);
  EXPECT_GT(pool.num_evicted(), 100);
}

}  // namespace
}  // namespace conclave
