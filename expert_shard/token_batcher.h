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
#include "absl/types/span.h"
#include "common/bfloat16.h"
#include "common/limits.h"
#include "expert_shard/expert_runner.h"
#include "expert_shard/merged_pairs.h"
#include "expert_shard/rendezvous.h"
#include "expert_shard/shard_metrics.h"
#include "rpc/buffer_pool.h"
#include "rpc/doorbell.h"
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
  uint64_t worker = 0;  // of AddWorker; 0: of no worker that others should wait for
  absl::Time deadline = absl::InfiniteFuture();
  // Set when nobody waits for the answer any more; it is then dropped unless already computing.
  std::shared_ptr<const std::atomic<bool>> abandoned;
  // Called exactly once, from the batcher's thread; must not block.
  std::function<void(absl::StatusOr<DispatchResult>)> done;
};

// Where dispatches come from besides Submit: memory that another process writes.
class DispatchSource {
 public:
  virtual ~DispatchSource() = default;
  // Submits what has come and sends what waits. Called by the batcher's thread whenever its bell
  // has rung and before each batch; must not block.
  virtual void Poll() = 0;
};

// Runs the dispatches of all workers on one thread. Those of one layer that wait together are
// computed together, so that an expert's weights are read from memory once for all of them; this
// changes no bit of any result. The layer of the oldest dispatch goes first, but for one that had
// better wait for another worker (see Rendezvous): none starves.
class TokenBatcher {
 public:
  struct Options {
    int max_queued_dispatches = limits::kMaxQueuedDispatches;
    // A batch takes no further dispatch past this many pairs.
    int64_t max_batch_pairs = limits::kMaxExpertBatchPairs;
    bool wait_for_others = true;
    // Told once, by the batcher's thread, when the runner's device has failed
    // (errors::IsDeviceFailure); may be empty, must not block.
    std::function<void(const absl::Status&)> on_device_failure;
  };

  // `runner` is used by the batcher's thread alone from now on; all are borrowed.
  TokenBatcher(ExpertRunner* runner, ShardMetrics* metrics, Options options);
  TokenBatcher(ExpertRunner* runner, ShardMetrics* metrics)
      : TokenBatcher(runner, metrics, Options()) {}
  ~TokenBatcher();  // Stop()
  TokenBatcher(const TokenBatcher&) = delete;
  TokenBatcher& operator=(const TokenBatcher&) = delete;

  // Does not block. ResourceExhausted when the queue is full, Unavailable after Stop or once the
  // device has failed; `done` is not called then. Otherwise `done` gets the rows, or
  // DeadlineExceeded if the deadline passed before the dispatch's turn came, or Cancelled if it was
  // abandoned.
  absl::Status Submit(QueuedDispatch dispatch);

  // A worker whose dispatches may meet those of others, until it is removed. Any thread.
  uint64_t AddWorker();
  void RemoveWorker(uint64_t worker);

  // Polled from now on, until it is removed. Any thread.
  void AddSource(std::shared_ptr<DispatchSource> source);
  // Not polled any more, but for a Poll that runs now.
  void RemoveSource(const DispatchSource* source);

  // Wakes the batcher's thread; other processes of this host ring it too.
  Doorbell& bell() { return bell_; }
  BufferPool& pool() { return pool_; }
  TensorBytes CopyTensor(absl::Span<const uint8_t> tensor);

  // Answers what is queued, then ends the thread. Blocks. May be called more than once.
  void Stop();

  // Unavailable for good once the device has failed: nothing is computed any more.
  absl::Status health();

  int64_t pairs_computed() const { return pairs_computed_.load(std::memory_order_relaxed); }

 private:
  using Batch = std::vector<QueuedDispatch>;

  void ThreadMain();
  void PollSources();
  // The dispatches of one layer that go next; empty if there are none, or all had better wait until
  // `*wait_until` or the bell.
  Batch TakeBatch(absl::Time* wait_until);
  absl::Time WaitUntil(uint32_t layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Batch TakeLayer(uint32_t layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Stopping();
  void Compute(Batch batch);
  // What dispatches are answered with after a Run that failed.
  absl::Status OnRunFailed(int layer, const absl::Status& status);

  ExpertRunner* const runner_;
  ShardMetrics* const metrics_;
  const Options options_;
  BufferPool pool_{limits::kMaxIdleTensorBytes};
  // The batcher's thread only.
  MergedPairs pairs_;                                    // of the batch being computed
  std::vector<std::shared_ptr<DispatchSource>> polled_;  // during PollSources
  std::atomic<int64_t> pairs_computed_{0};

  Doorbell bell_;

  absl::Mutex mutex_;
  std::vector<std::shared_ptr<DispatchSource>> sources_ ABSL_GUARDED_BY(mutex_);
  std::deque<QueuedDispatch> queue_ ABSL_GUARDED_BY(mutex_);
  Rendezvous rendezvous_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_worker_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status health_ ABSL_GUARDED_BY(mutex_);
  absl::Mutex join_mutex_;
  std::thread thread_ ABSL_GUARDED_BY(join_mutex_);
};

}  // namespace conclave
