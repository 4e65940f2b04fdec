#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/bfloat16.h"
#include "common/limits.h"
#include "expert_shard/expert_runner.h"
#include "expert_shard/merged_pairs.h"
#include "expert_shard/shard_metrics.h"
#include "rpc/buffer_pool.h"
#include "rpc/expert_frame.h"

namespace conclave {

// Result rows that lie one after another.
struct ExpertRows {
  const BFloat16* rows = nullptr;  // [num_pairs, hidden_size]
  int64_t num_pairs = 0;
};

struct DispatchResult {
  std::vector<ExpertRows> rows;       // all pairs of the dispatch, in its order
  std::shared_ptr<const void> owner;  // keeps them alive
  absl::Duration compute_time;        // of the batch the dispatch was part of
};

// A dispatch that DispatchRules accepted.
struct QueuedDispatch {
  DispatchFrame frame;
  absl::Time deadline = absl::InfiniteFuture();
  // Set when nobody waits for the answer any more; it is then dropped unless already computing.
  std::shared_ptr<const std::atomic<bool>> abandoned;
  // Called exactly once, from the batcher's thread; must not block.
  std::function<void(absl::StatusOr<DispatchResult>)> done;
};

// Runs the dispatches of all workers on one thread. Those of one layer that wait together are
// computed together, so that an expert's weights are read from memory once for all of them; this
// changes no bit of any result. The layer of the oldest dispatch goes first: none starves.
class TokenBatcher {
 public:
  struct Options {
    int max_queued_dispatches = limits::kMaxQueuedDispatches;
    // A batch takes no further dispatch past this many pairs.
    int64_t max_batch_pairs = limits::kMaxExpertBatchPairs;
  };

  // `runner` is used by the batcher's thread alone from now on; all are borrowed.
  TokenBatcher(ExpertRunner* runner, ShardMetrics* metrics, Options options);
  TokenBatcher(ExpertRunner* runner, ShardMetrics* metrics)
      : TokenBatcher(runner, metrics, Options()) {}
  ~TokenBatcher();  // Stop()
  TokenBatcher(const TokenBatcher&) = delete;
  TokenBatcher& operator=(const TokenBatcher&) = delete;

  // Does not block. ResourceExhausted when the queue is full, Unavailable after Stop; `done` is
  // not called then. Otherwise `done` gets the rows, or DeadlineExceeded if the deadline passed
  // before the dispatch's turn came, or Cancelled if it was abandoned.
  absl::Status Submit(QueuedDispatch dispatch);

  // Answers what is queued, then ends the thread. Blocks. May be called more than once.
  void Stop();

  int64_t pairs_computed() const { return pairs_computed_.load(std::memory_order_relaxed); }

 private:
  using Batch = std::vector<QueuedDispatch>;

  void ThreadMain();
  // The oldest dispatch and all others of its layer that fit; empty at the end.
  Batch TakeBatch();
  bool HasWorkOrStopping() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !queue_.empty();
  }
  void Compute(Batch batch);

  ExpertRunner* const runner_;
  ShardMetrics* const metrics_;
  const Options options_;
  BufferPool pool_{limits::kMaxIdleTensorBytes};
  MergedPairs pairs_;  // of the batch being computed; the batcher's thread only
  std::atomic<int64_t> pairs_computed_{0};

  absl::Mutex mutex_;
  std::deque<QueuedDispatch> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Mutex join_mutex_;
  std::thread thread_ ABSL_GUARDED_BY(join_mutex_);
};

}  // namespace conclave
