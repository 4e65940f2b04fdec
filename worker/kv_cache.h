#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/bfloat16.h"
#include "kernels/norm_rope.h"
#include "model/qwen3_config.h"

namespace conclave {

// The memory of every layer's KV blocks: one pair of arrays a layer, all with the same block ids.
class KvCache {
 public:
  KvCache(const Qwen3Config& config, int64_t num_blocks);

  KvCacheLayer Layer(int layer);
  int64_t num_blocks() const { return num_blocks_; }

 private:
  KvCacheLayer shape_;
  int64_t num_blocks_;
  int64_t values_per_array_;
  std::unique_ptr<BFloat16[]> values_;  // [num_layers][k, v], each as KvCacheLayer lays it out
};

// Which blocks are free. Blocks are handed out lowest id first, so that a small load touches
// little memory.
class BlockPool {
 public:
  explicit BlockPool(int64_t num_blocks);

  int64_t num_blocks() const { return num_blocks_; }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }

  // Appends `count` blocks to `block_table`; false, and nothing taken, if fewer are free.
  bool Allocate(int64_t count, std::vector<int32_t>& block_table);
  // Returns them all and empties the table.
  void Free(std::vector<int32_t>& block_table);

 private:
  const int64_t num_blocks_;
  std::vector<int32_t> free_;  // a min-heap
};

}  // namespace conclave
