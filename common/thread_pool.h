#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"

namespace conclave {

// A fixed team of threads for one loop at a time. Idle threads sleep (several processes share the
// cores of one host), after at most a few microseconds of spinning between two loops of one step. A
// loop ends when its ranges are done: a thread that wakes too late for any of them, because its
// core slept or belongs to another process just now, is not waited for.
class ThreadPool {
 public:
  // num_threads counts the calling thread: 1 starts none and runs every loop inline. With `cpus`
  // each thread that is started stays on one of them, the first on cpus[1], so that cpus[0] is left
  // to the caller, which is not pinned.
  explicit ThreadPool(int num_threads, absl::Span<const int> cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls fn(begin, end) on ranges of at most `grain` that cover [0, count) exactly once, from
  // several threads, and returns when all are done. Which thread gets which range is not fixed,
  // so no result may depend on it. Runs inline if count <= grain. Callers are serialised; fn must
  // not call ParallelFor of the same pool.
  void ParallelFor(int64_t count, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> fn);

 private:
  struct Loop {
    absl::FunctionRef<void(int64_t, int64_t)> fn;
    int64_t count;
    int64_t grain;
  };

  void ThreadMain(int cpu);  // -1: any
  void RunRanges(const Loop& loop);

  // True if a loop is open; then the caller waits until Leave.
  bool Enter();
  void Leave();

  absl::Mutex caller_mutex_;    // one loop at a time
  const Loop* loop_ = nullptr;  // published by gate_
  std::atomic<int64_t> next_{0};
  // Number of the loop << 32 | kOpen while threads may enter it | threads inside. The number makes
  // an attempt to enter fail that began when another loop was open.
  std::atomic<uint64_t> gate_{0};
  std::atomic<uint32_t> loops_begun_{0};  // what idle threads sleep on
  std::atomic<uint32_t> loops_left_{0};   // what the caller sleeps on
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

}  // namespace conclave
