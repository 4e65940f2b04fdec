#include "router/prefix_map.h"

#include <algorithm>

#include "absl/hash/hash.h"

namespace conclave {

PrefixKeys PrefixMap::KeysOf(absl::Span<const uint32_t> ids) {
  PrefixKeys keys;
  keys.reserve(ids.size() / kChunkTokens);
  uint64_t key = 0;
  for (; ids.size() >= kChunkTokens; ids.remove_prefix(kChunkTokens)) {
    key = absl::HashOf(key, ids.first(kChunkTokens));
    keys.push_back(key);
  }
  return keys;
}

std::vector<int64_t> PrefixMap::CommonTokens(const PrefixKeys& keys, int num_workers) const {
  std::vector<int64_t> tokens(num_workers, 0);
  int64_t chunks = 0;
  for (uint64_t key : keys) {
    const auto found = index_.find(key);
    if (found == index_.end()) break;
    bool any = false;
    for (const Holder& holder : found->second->holders) {
      // Only who has all chunks before has this one's use.
      if (holder.life != life(holder.worker) || holder.worker >= num_workers) continue;
      if (tokens[holder.worker] != chunks * kChunkTokens) continue;
      tokens[holder.worker] += kChunkTokens;
      any = true;
    }
    if (!any) break;
    ++chunks;
  }
  return tokens;
}

void PrefixMap::Record(const PrefixKeys& keys, int worker) {
  // From the end, so that a prompt's beginning is forgotten last.
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    const auto [entry, added] = index_.try_emplace(*key);
    if (added) {
      chunks_.emplace_front().key = *key;
      entry->second = chunks_.begin();
    } else {
      chunks_.splice(chunks_.begin(), chunks_, entry->second);
    }
    auto& holders = chunks_.front().holders;
    const auto is_over = [&](const Holder& holder) {
      return holder.worker == worker || holder.life != life(holder.worker);
    };
    holders.erase(std::remove_if(holders.begin(), holders.end(), is_over), holders.end());
    holders.push_back({worker, life(worker)});
  }
  while (chunks_.size() > max_chunks_) {
    index_.erase(chunks_.back().key);
    chunks_.pop_back();
  }
}

void PrefixMap::Forget(int worker) {
  if (worker >= static_cast<int>(lives_.size())) lives_.resize(worker + 1, 0);
  ++lives_[worker];
}

}  // namespace conclave
