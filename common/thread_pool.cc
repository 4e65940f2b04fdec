#include "common/thread_pool.h"

#include <algorithm>

#include "common/check.h"
#include "common/cpu_placement.h"

namespace conclave {
namespace {

// About 2 microseconds of pauses on current cores: the gap between two loops of one layer. Longer
// spinning would take the core from another process of this host.
constexpr int kSpins = 64;

// Parts of gate_.
constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kInside = kOpen - 1;

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
  loops_begun_.fetch_add(1);
  loops_begun_.notify_all();
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
  const uint32_t number = loops_begun_.load(std::memory_order_relaxed) + 1;
  gate_.store(uint64_t{number} << 32 | kOpen, std::memory_order_release);
  loops_begun_.store(number, std::memory_order_release);
  loops_begun_.notify_all();
  RunRanges(loop);
  // Those inside must have left before `loop` goes out of scope.
  gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spins = 0; spins < kSpins; ++spins) {
    if ((gate_.load(std::memory_order_acquire) & kInside) == 0) return;
    Pause();
  }
  for (;;) {
    const uint32_t left = loops_left_.load(std::memory_order_acquire);
    if ((gate_.load(std::memory_order_acquire) & kInside) == 0) return;
    loops_left_.wait(left, std::memory_order_acquire);
  }
}

bool ThreadPool::Enter() {
  uint64_t gate = gate_.load(std::memory_order_acquire);
  while ((gate & kOpen) != 0) {
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

void ThreadPool::Leave() {
  const uint64_t before = gate_.fetch_sub(1, std::memory_order_acq_rel);
  if ((before & kInside) != 1 || (before & kOpen) != 0) return;  // nobody waits for this one
  loops_left_.fetch_add(1, std::memory_order_acq_rel);
  loops_left_.notify_one();
}

void ThreadPool::ThreadMain(int cpu) {
  // A CPU that went offline since costs speed, not results.
  if (cpu >= 0) (void)PinThisThread({&cpu, 1});
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; spins < kSpins; ++spins) {
      if (loops_begun_.load(std::memory_order_acquire) != seen) break;
      Pause();
    }
    loops_begun_.wait(seen, std::memory_order_acquire);
    if (stopping_.load()) return;
    seen = loops_begun_.load(std::memory_order_acquire);
    if (!Enter()) continue;
    RunRanges(*loop_);
    Leave();
  }
}

}  // namespace conclave
