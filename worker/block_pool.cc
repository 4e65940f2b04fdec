#include "worker/block_pool.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "common/check.h"

namespace conclave {

BlockPool::BlockPool(int64_t num_blocks, bool keep_prefixes)
    : num_blocks_(num_blocks), keep_prefixes_(keep_prefixes), free_(num_blocks) {
  std::iota(free_.begin(), free_.end(), 0);  // ascending: already a min-heap
}

// ---- use ----

bool BlockPool::Allocate(int64_t count, std::vector<int32_t>& block_table) {
  if (count > num_free()) return false;
  for (int64_t i = 0; i < count; ++i) {
    int32_t block = -1;
    if (free_.empty()) {
      block = EvictOldest();
    } else {
      std::pop_heap(free_.begin(), free_.end(), std::greater<>());
      block = free_.back();
      free_.pop_back();
      if (block >= static_cast<int32_t>(blocks_.size())) blocks_.resize(block + 1);
    }
    CHECK_EQ(blocks_[block].uses, 0) << "block " << block;
    blocks_[block].uses = 1;
    block_table.push_back(block);
  }
  return true;
}

void BlockPool::Free(std::vector<int32_t>& block_table) {
  // From the end, so that the beginning of a prefix counts as used later than what follows it.
  for (auto block = block_table.rbegin(); block != block_table.rend(); ++block) EndUse(*block);
  block_table.clear();
}

void BlockPool::Use(int32_t block) {
  if (blocks_[block].uses++ == 0) Unlink(block);
}

void BlockPool::EndUse(int32_t block) {
  Block& ended = blocks_[block];
  CHECK_GT(ended.uses, 0) << "block " << block << " was freed twice";
  if (--ended.uses > 0) return;
  if (ended.serial == 0) {
    free_.push_back(block);
    std::push_heap(free_.begin(), free_.end(), std::greater<>());
    return;
  }
  ended.older = newest_;
  (newest_ >= 0 ? blocks_[newest_].newer : oldest_) = block;
  newest_ = block;
  ++num_unused_cached_;
}

void BlockPool::Unlink(int32_t block) {
  Block& unlinked = blocks_[block];
  (unlinked.older >= 0 ? blocks_[unlinked.older].newer : oldest_) = unlinked.newer;
  (unlinked.newer >= 0 ? blocks_[unlinked.newer].older : newest_) = unlinked.older;
  unlinked.older = unlinked.newer = -1;
  --num_unused_cached_;
}

int32_t BlockPool::EvictOldest() {
  const int32_t block = oldest_;
  Unlink(block);
  cached_.erase(*blocks_[block].key);
  blocks_[block] = Block();
  ++num_evicted_;
  return block;
}

// ---- prefixes ----

BlockPool::Key BlockPool::MakeKey(uint64_t parent, absl::Span<const uint32_t> ids) {
  Key key;
  key.parent = parent;
  std::copy_n(ids.begin(), kBlockTokens, key.ids.begin());
  return key;
}

int64_t BlockPool::CountCached(absl::Span<const uint32_t> ids) const {
  uint64_t serial = 0;
  int64_t count = 0;
  for (; ids.size() >= kBlockTokens; ids.remove_prefix(kBlockTokens), ++count) {
    const auto found = cached_.find(MakeKey(serial, ids));
    if (found == cached_.end()) break;
    serial = blocks_[found->second].serial;
  }
  return count;
}

void BlockPool::TakeCached(absl::Span<const uint32_t> ids, CachedPrefix& prefix,
                           std::vector<int32_t>& block_table) {
  CHECK_EQ(static_cast<int64_t>(block_table.size()), prefix.num_blocks);
  while (static_cast<int64_t>(ids.size()) >= (prefix.num_blocks + 1) * kBlockTokens) {
    const auto found =
        cached_.find(MakeKey(prefix.serial, ids.subspan(prefix.num_blocks * kBlockTokens)));
    if (found == cached_.end()) return;
    Use(found->second);
    block_table.push_back(found->second);
    prefix = {prefix.num_blocks + 1, blocks_[found->second].serial};
  }
}

void BlockPool::Cache(absl::Span<const uint32_t> ids, CachedPrefix& prefix,
                      std::vector<int32_t>& block_table) {
  if (!keep_prefixes_) return;
  CHECK_EQ(static_cast<int64_t>(ids.size()), kBlockTokens);
  int32_t& block = block_table[prefix.num_blocks];
  const auto [entry, added] = cached_.try_emplace(MakeKey(prefix.serial, ids), block);
  if (added) {
    CHECK_EQ(blocks_[block].serial, 0u) << "block " << block << " is cached already";
    blocks_[block].serial = ++last_serial_;
    blocks_[block].key = &entry->first;
  } else {
    // Two sequences computed the same at a time. What follows hangs on the block that is found.
    Use(entry->second);
    EndUse(block);
    block = entry->second;
  }
  prefix = {prefix.num_blocks + 1, blocks_[block].serial};
}

}  // namespace conclave
