#include "common/thread_pool.h"

#include <algorithm>

#include "common/check.h"
#include "common/cpu_placement.h"

namespace conclave {
namespace {

// About 2 microseconds of pauses on current cores: the gap between two loops of one layer. Longer
// spinning would take the core from another process of this host.
constexpr int kSpins = 64;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, absl::Span<const int> cpus) {
  CHECK_GE(num_threads, 1);
  threads_.reserve(num_threads - 1);
  for (int i = 1; i < num_threads; ++i) {
    const int cpu = cpus.empty() ? -1 : cpus[i % cpus.size()];
    threads_.emplace_back([this, cpu] { ThreadMain(cpu); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::RunRanges(const Loop& loop) {
  for (;;) {
    const int64_t begin = next_.fetch_add(loop.grain, std::memory_order_relaxed);
    if (begin >= loop.count) return;
    loop.fn(begin, std::min(begin + loop.grain, loop.count));
  }
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain,
                             absl::FunctionRef<void(int64_t, int64_t)> fn) {
  CHECK_GE(grain, 1);
  if (count <= 0) return;
  if (threads_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) {
      fn(begin, std::min(begin + grain, count));
    }
    return;
  }
  absl::MutexLock lock(&caller_mutex_);
  const Loop loop{fn, count, grain};
  loop_ = &loop;
  next_.store(0, std::memory_order_relaxed);
  threads_in_loop_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  RunRanges(loop);
  // Every thread must have left the loop before `loop` goes out of scope.
  for (int spins = 0; spins < kSpins; ++spins) {
    if (threads_in_loop_.load(std::memory_order_acquire) == 0) return;
    Pause();
  }
  for (int left = threads_in_loop_.load(std::memory_order_acquire); left != 0;
       left = threads_in_loop_.load(std::memory_order_acquire)) {
    threads_in_loop_.wait(left, std::memory_order_acquire);
  }
}

void ThreadPool::ThreadMain(int cpu) {
  // A CPU that went offline since costs speed, not results.
  if (cpu >= 0) (void)PinThisThread({&cpu, 1});
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; spins < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spins) {
      Pause();
    }
    epoch_.wait(seen, std::memory_order_acquire);
    if (stopping_.load()) return;
    // A loop starts only after every thread left the one before, so an epoch is never skipped.
    ++seen;
    RunRanges(*loop_);
    if (threads_in_loop_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      threads_in_loop_.notify_one();
    }
  }
}

}  // namespace conclave
