#include "worker/kv_cache.h"

#include "common/limits.h"

namespace conclave {

KvCache::KvCache(const Qwen3Config& config, int64_t num_blocks) : num_blocks_(num_blocks) {
  shape_.num_blocks = num_blocks;
  shape_.num_key_value_heads = config.num_key_value_heads;
  shape_.block_tokens = limits::kKvBlockTokens;
  shape_.head_dim = config.head_dim;
  values_per_array_ =
      num_blocks * config.num_key_value_heads * limits::kKvBlockTokens * config.head_dim;
  // Not zeroed: the kernel hands out pages when a block is first written, so memory that no
  // sequence used costs nothing. Attention never reads a slot before it is written.
  values_ =
      std::make_unique_for_overwrite<BFloat16[]>(values_per_array_ * 2 * config.num_hidden_layers);
}

KvCacheLayer KvCache::Layer(int layer) {
  KvCacheLayer result = shape_;
  result.k = values_.get() + values_per_array_ * 2 * layer;
  result.v = result.k + values_per_array_;
  return result;
}

}  // namespace conclave
