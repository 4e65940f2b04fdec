#pragma once

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "rpc/expert_frame.h"

namespace conclave {

// A combine as it came in, and from which stream of which shard.
struct ShardCombine {
  int shard_idx = 0;
  uint64_t stream_id = 0;
  CombineFrame frame;
};

// What the shards' connections tell the engine's thread. Any thread pushes, one waits.
class ExchangeInbox {
 public:
  // False when it holds more combines than any layer is answered with.
  bool Push(ShardCombine combine);

  // Some connection's state changed. The waiter compares changes() with what it saw last, and then
  // looks at all of them.
  void NotifyChanged();
  uint64_t changes() const;

  // Ends every wait from now on.
  void Stop();
  bool stopped() const;

  // Blocks until there is a combine, changes() is not `seen`, a stop, or `deadline` passes. Hands
  // out all combines, in the order of each stream.
  void Wait(uint64_t seen, absl::Time deadline, std::vector<ShardCombine>* combines);

  // The same without regard to combines.
  void WaitForChange(uint64_t seen, absl::Time deadline) const;

 private:
  mutable absl::Mutex mutex_;
  std::vector<ShardCombine> combines_ ABSL_GUARDED_BY(mutex_);
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace conclave
