#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/node_hash_map.h"
#include "absl/types/span.h"
#include "common/limits.h"

namespace conclave {

// How far a sequence's blocks, from the first on, are known to the prefix cache.
struct CachedPrefix {
  int64_t num_blocks = 0;
  uint64_t serial = 0;  // of the last of them; 0: none
};

// Which KV blocks are free, how often the others are used, and which of them hold what: the prefix
// cache. A block of which every token is computed is cached under (serial of the cached block
// before it, its token ids). Serials are never used twice and the ids are compared, not only
// hashed, so that a block found this way holds exactly the keys and values that its finder would
// compute.
//
// Blocks that nobody uses and nobody can find are handed out first, lowest id first, so that a
// small load touches little memory; then the cached ones that nobody uses, longest unused first. A
// prefix loses its end before its beginning.
class BlockPool {
 public:
  static constexpr int64_t kBlockTokens = limits::kKvBlockTokens;

  // Without `keep_prefixes` nothing is ever cached.
  BlockPool(int64_t num_blocks, bool keep_prefixes);

  int64_t num_blocks() const { return num_blocks_; }
  bool keeps_prefixes() const { return keep_prefixes_; }
  // Blocks that Allocate can hand out.
  int64_t num_free() const { return static_cast<int64_t>(free_.size()) + num_unused_cached_; }
  // Those of them that it would take out of the cache.
  int64_t num_unused_cached() const { return num_unused_cached_; }
  int64_t num_evicted() const { return num_evicted_; }

  // Appends `count` blocks to `block_table`; false, and nothing taken, if fewer are free.
  bool Allocate(int64_t count, std::vector<int32_t>& block_table);
  // Ends their use by this table and empties it.
  void Free(std::vector<int32_t>& block_table);

  // How many blocks of `ids`, from the first on, are cached.
  int64_t CountCached(absl::Span<const uint32_t> ids) const;
  // Appends to `block_table`, which holds `prefix` and no more, the cached blocks that continue it
  // with the rest of `ids`, and moves `prefix` on. Never takes a block that ends past ids.end().
  void TakeCached(absl::Span<const uint32_t> ids, CachedPrefix& prefix,
                  std::vector<int32_t>& block_table);
  // block_table[prefix.num_blocks] holds what was computed of its kBlockTokens ids: caches it and
  // moves `prefix` on. If another block holds the same, the table gets that one instead.
  void Cache(absl::Span<const uint32_t> ids, CachedPrefix& prefix,
             std::vector<int32_t>& block_table);

 private:
  struct Key {
    uint64_t parent = 0;  // serial
    std::array<uint32_t, kBlockTokens> ids = {};

    bool operator==(const Key& other) const = default;
    template <typename H>
    friend H AbslHashValue(H h, const Key& key) {
      return H::combine(std::move(h), key.parent, key.ids);
    }
  };
  struct Block {
    int32_t uses = 0;                // tables that hold it
    int32_t older = -1, newer = -1;  // neighbours in the list of unused cached blocks
    uint64_t serial = 0;             // 0: not cached
    const Key* key = nullptr;        // in cached_
  };

  static Key MakeKey(uint64_t parent, absl::Span<const uint32_t> ids);
  void Use(int32_t block);
  void EndUse(int32_t block);
  void Unlink(int32_t block);
  int32_t EvictOldest();

  const int64_t num_blocks_;
  const bool keep_prefixes_;
  std::vector<int32_t> free_;  // neither used nor cached; a min-heap
  std::vector<Block> blocks_;  // [block]; grows to the highest id ever handed out
  absl::node_hash_map<Key, int32_t> cached_;
  int32_t oldest_ = -1, newest_ = -1;  // of the unused cached blocks
  int64_t num_unused_cached_ = 0;
  int64_t num_evicted_ = 0;
  uint64_t last_serial_ = 0;
};

}  // namespace conclave
