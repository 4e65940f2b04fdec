#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/limits.h"
#include "proto/conclave/v1/inference.pb.h"
#include "proto/conclave/v1/worker.grpc.pb.h"
#include "router/prefix_map.h"
#include "router/router_metrics.h"
#include "router/timers.h"
#include "rpc/peer_watcher.h"

namespace conclave {

struct WorkerPoolOptions {
  // gRPC targets; "dns:///NAME:PORT" stands for a worker at each address of the name.
  std::vector<std::string> targets;
  std::shared_ptr<NameResolver> resolver;  // null: MakeDnsResolver()
  absl::Duration name_refresh = limits::kNameRefresh;
  absl::Duration poll_interval = absl::Milliseconds(500);
  absl::Duration describe_deadline = limits::kDescribeDeadline;
  // After this many failures with no success between, the worker rests before it gets requests
  // again, however well it describes itself: the first duration, doubling up to the second.
  int failures_to_open = 3;
  absl::Duration min_rest = absl::Milliseconds(500);
  absl::Duration max_rest = absl::Seconds(30);
  // A worker with one more request in flight is as good if it has so many more of the prompt's
  // tokens in its prefix cache. A request in flight takes a share of each step from a new one, as
  // long as both run; some hundred tokens of prefill are of that order.
  int64_t tokens_per_request = 256;
};

class WorkerPool;

// One request's hold on one worker: counts as in flight there until it is over, at the latest when
// this is destroyed. Background work never counts.
class WorkerLease {
 public:
  WorkerLease(WorkerPool* pool, int worker, v1::Worker::Stub* stub, std::string fingerprint,
              bool background = false)
      : pool_(pool),
        worker_(worker),
        stub_(stub),
        fingerprint_(std::move(fingerprint)),
        background_(background),
        acquired_(absl::Now()) {}
  ~WorkerLease();
  WorkerLease(const WorkerLease&) = delete;
  WorkerLease& operator=(const WorkerLease&) = delete;

  int worker() const { return worker_; }
  v1::Worker::Stub& stub() const { return *stub_; }
  const std::string& fingerprint() const { return fingerprint_; }

  // The worker's stream broke. It gets no request until it has described itself anew.
  void ReportFailure(const absl::Status& status);
  // The last token is there. The call may take a little longer to end, but is no load any more.
  void ReportSuccess();

 private:
  WorkerPool* const pool_;
  const int worker_;
  v1::Worker::Stub* const stub_;
  const std::string fingerprint_;
  bool background_;
  const absl::Time acquired_;
};

// The workers: asks each how it is and hands out one that is ready: the least loaded, or one that
// is likely to have the prompt's beginning in its prefix cache, which of the two saves more. Only
// transport errors and broken streams count against a worker. A worker that leaves its DNS name
// gets nothing new and finishes what it has; one that joins is used once it has described itself. A
// worker is named by a number, which a later one may have when this one is gone. Thread-safe;
// nothing blocks but the destructor.
class WorkerPool {
 public:
  // `model`: what the router serves; a worker of another shape is never used.
  WorkerPool(WorkerPoolOptions options, v1::ModelInfo model, RouterMetrics* metrics);
  // Waits until every lease is back: end the requests first.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // What a request can use. A request that moved needs the same weights as before.
  struct Wanted {
    std::string fingerprint;             // empty: any
    absl::flat_hash_set<int> not_these;  // workers that refused it
    PrefixKeys prefix = {};              // of the prompt
  };
  // The best worker that is ready, or null.
  std::unique_ptr<WorkerLease> Acquire(const Wanted& wanted);

  // This worker for background work that makes `prefix` cached there, if it is up, keeps a prefix
  // cache and seems to have nothing else to do; or null.
  std::unique_ptr<WorkerLease> AcquireIdle(int worker, const PrefixKeys& prefix);

  using WaitId = uint64_t;
  // Calls back exactly once, from a thread of the pool or of gRPC: when a worker may have become
  // usable, or at the deadline.
  WaitId Wait(const Wanted& wanted, absl::Time deadline, absl::AnyInvocable<void()> callback);
  // The callback will not be called, unless it is being called now.
  void CancelWait(WaitId id);

  // Those found so far that have not left, and the names without any.
  int num_workers() const;
  bool AnyReady() const;
  // Calls back once, when a worker is ready for the first time.
  void OnFirstReady(absl::AnyInvocable<void()> callback);
  // Calls `callback` with the requests that wait in each ready worker, on average, whenever a
  // worker has described itself; under a lock, so that it must not call back here. Null: no more.
  void OnQueue(absl::AnyInvocable<void(double waiting_per_worker)> callback);
  // Prompt and output together that every ready worker can hold; 0 while none is known.
  int64_t max_context() const;
  // Of the model the workers loaded; empty while none is known.
  std::string fingerprint() const;
  std::string weight_dtype() const;
  std::vector<v1::ClusterStatus::WorkerStatus> Snapshot() const;

  Timers& timers() { return timers_; }

 private:
  friend class WorkerLease;
  struct Worker {
    std::string target;
    std::unique_ptr<v1::Worker::Stub> stub;  // null: the place is free
    bool leaving = false;  // it has left its name; the place is free when nobody uses it any more
    bool up = false;       // described itself ready, as our model, since its last failure
    std::string error = "not asked yet";
    bool other_model = false;  // ready, but with weights that are not ours
    v1::WorkerDescription description;
    int inflight = 0;          // leases of requests that are not over
    int background = 0;        // the other leases
    int inflight_at_poll = 0;  // leases when `description` was asked for
    int failures = 0;          // since the last success
    absl::Time last_failure = absl::InfinitePast();
    absl::Time rests_until = absl::InfinitePast();
    bool polling = false;
    Timers::Id poll_timer = 0;
    uint64_t last_used = 0;  // ticks, for turns among equals
  };
  struct Waiter {
    absl::AnyInvocable<void()> callback;
    Timers::Id timer;
  };
  struct DescribeCall;

  // Takes over what the names are now.
  void OnPeers(const PeerWatcher::Found& found);
  void Join(const std::string& address) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int num_slots() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return static_cast<int>(workers_.size());
  }
  void SchedulePoll(int worker, absl::Time when) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Poll(int worker);
  void OnDescribed(int worker, absl::Time asked, const absl::Status& status,
                   const v1::WorkerDescription& description);
  void ReportFailure(int worker, absl::Time acquired, const absl::Status& status);
  void ReportSuccess(int worker, bool background);
  void Release(int worker, bool background);
  void FireWaiter(WaitId id);
  void SetUp(Worker& worker, bool up, std::string error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Why a worker that answered gets no requests; empty if it does.
  std::string WhyUnusable(const Worker& worker) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string WhyOtherModel(const Worker& worker) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool CanUse(int worker, const Wanted& wanted) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Requests on the worker, ours and other routers'.
  int64_t LoadOf(const Worker& worker) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tokens of the prompt that each worker is likely to have cached: [num_slots].
  std::vector<int64_t> CachedTokens(const Wanted& wanted) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int FindBest(const Wanted& wanted, const std::vector<int64_t>& cached) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  double WaitingPerWorker() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const WorkerPoolOptions options_;
  const v1::ModelInfo model_;
  RouterMetrics* const metrics_;
  mutable absl::Mutex mutex_;
  std::vector<Worker> workers_ ABSL_GUARDED_BY(mutex_);  // a worker's number is its place
  // Names without a worker, and why.
  std::vector<std::pair<std::string, std::string>> unresolved_ ABSL_GUARDED_BY(mutex_);
  PrefixMap prefixes_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<WaitId, Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<DescribeCall*> calls_ ABSL_GUARDED_BY(mutex_);
  absl::AnyInvocable<void()> on_first_ready_ ABSL_GUARDED_BY(mutex_);
  absl::AnyInvocable<void(double)> on_queue_ ABSL_GUARDED_BY(mutex_);
  std::string fingerprint_ ABSL_GUARDED_BY(mutex_);  // of the workers that are up
  std::string weight_dtype_ ABSL_GUARDED_BY(mutex_);
  WaitId next_wait_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t ticks_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  Timers timers_;        // its thread ends before what its callbacks use,
  PeerWatcher watcher_;  // and so does this one's
};

}  // namespace conclave
