#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "rpc/doorbell.h"
#include "rpc/expert_frame.h"

namespace conclave {

// A combine as it came in, and by which way from which shard (see ShardView).
struct ShardCombine {
  int shard_idx = 0;
  uint64_t path_id = 0;
  CombineFrame frame;
};

// What the shards' connections tell the engine's thread. Any thread pushes, one waits: it sleeps at
// the bell, which shards ring too when they have put frames into shared memory.
class ExchangeInbox {
 public:
  Doorbell& bell() { return bell_; }

  // For a new way to a shard: no two ever have the same.
  uint64_t NextPathId() { return ++last_path_id_; }

  // False when it holds more combines than any layer is answered with.
  bool Push(ShardCombine combine);

  // Some connection's state changed. The waiter compares changes() with what it saw last, and then
  // looks at all of them.
  void NotifyChanged();
  uint64_t changes() const;

  // Ends every wait from now on.
  void Stop();
  bool stopped() const;

  // Appends all combines, in the order of each stream. True if there were any, or changes() is not
  // `seen`, or after Stop. Otherwise the bell will ring when there is one of these.
  bool Take(uint64_t seen, std::vector<ShardCombine>* combines);

  // Blocks until changes() is not `seen`, a stop, or `deadline` passes.
  void WaitForChange(uint64_t seen, absl::Time deadline) const;

 private:
  Doorbell bell_;
  std::atomic<uint64_t> last_path_id_{0};
  mutable absl::Mutex mutex_;
  std::vector<ShardCombine> combines_ ABSL_GUARDED_BY(mutex_);
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace conclave
