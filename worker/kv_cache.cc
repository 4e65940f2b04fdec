#include "worker/kv_cache.h"

#include <sys/mman.h>

#include "common/limits.h"

namespace conclave {
namespace {

// Blocks of one head are 4 KiB and lie anywhere: on small pages each costs attention a TLB miss.
void PreferHugePages(BFloat16* values, int64_t count) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(values) + kPage - 1) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(values + count) / kPage * kPage;
  // Refused: slower, not wrong.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

KvCache::KvCache(const Qwen3Config& config, int64_t num_blocks) : num_blocks_(num_blocks) {
  shape_.num_blocks = num_blocks;
  shape_.num_key_value_heads = config.num_key_value_heads;
  shape_.block_tokens = limits::kKvBlockTokens;
  shape_.head_dim = config.head_dim;
  values_per_array_ =
      num_blocks * config.num_key_value_heads * limits::kKvBlockTokens * config.head_dim;
  // Not zeroed: the kernel hands out pages when a block is first written, so memory that no
  // sequence used costs nothing. Attention never reads a slot before it is written.
  const int64_t count = values_per_array_ * 2 * config.num_hidden_layers;
  values_ = std::make_unique_for_overwrite<BFloat16[]>(count);
  PreferHugePages(values_.get(), count);
}

KvCacheLayer KvCache::Layer(int layer) {
  KvCacheLayer result = shape_;
  result.k = values_.get() + values_per_array_ * 2 * layer;
  result.v = result.k + values_per_array_;
  return result;
}

}  // namespace conclave
