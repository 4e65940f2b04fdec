#pragma once

#include <cstdint>
#include <list>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"

namespace conclave {

// One key for each full chunk of PrefixMap::kChunkTokens ids: a hash of it and all before it.
using PrefixKeys = std::vector<uint64_t>;

// Remembers which worker was given which prompts, so that one that begins alike can go where its KV
// blocks may still be. A guess: the worker's own cache decides, and a false one costs only time.
// Holds at most limits::kMaxPrefixMapChunks chunks; those longest unused go first. Not thread-safe.
class PrefixMap {
 public:
  // Four KV blocks. A longer chunk would miss short conversations, a shorter one costs a look-up of
  // each.
  static constexpr int kChunkTokens = 64;

  explicit PrefixMap(size_t max_chunks) : max_chunks_(max_chunks) {}

  static PrefixKeys KeysOf(absl::Span<const uint32_t> ids);

  // Tokens at the prompt's beginning that each worker was given before: [num_workers].
  std::vector<int64_t> CommonTokens(const PrefixKeys& keys, int num_workers) const;
  // The worker is given this prompt now.
  void Record(const PrefixKeys& keys, int worker);
  // The worker has lost what it had.
  void Forget(int worker);

  size_t size() const { return chunks_.size(); }

 private:
  // A worker as it was: Forget makes the next one of it.
  struct Holder {
    int worker = 0;
    uint32_t life = 0;
  };
  struct Chunk {
    uint64_t key = 0;
    absl::InlinedVector<Holder, 2> holders;
  };

  uint32_t life(int worker) const {
    return worker < static_cast<int>(lives_.size()) ? lives_[worker] : 0;
  }

  const size_t max_chunks_;
  std::list<Chunk> chunks_;  // last used first
  absl::flat_hash_map<uint64_t, std::list<Chunk>::iterator> index_;
  std::vector<uint32_t> lives_;  // [worker], as far as any was forgotten
};

}  // namespace conclave
