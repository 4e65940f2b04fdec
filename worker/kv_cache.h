#pragma once

#include <cstdint>
#include <memory>

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

}  // namespace conclave
