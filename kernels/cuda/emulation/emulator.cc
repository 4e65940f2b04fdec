#include "kernels/cuda/emulation/emulator.h"

#include <boost/context/fiber.hpp>
#include <boost/context/stack_context.hpp>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "common/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace conclave::cuda::emulation {

const ThreadState* current = nullptr;
void* dynamic_shared = nullptr;

namespace {

namespace context = boost::context;

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;      // of a thread block, as on every device
constexpr size_t kMaxExchangeBytes = 64;    // the widest operand of a warp: A and B of one mma
constexpr size_t kStackBytes = 256 * 1024;  // AddressSanitizer's frames are large
// Of one thread block on sm_90; sm_80 has 163 KiB, which the kernels' static_asserts keep to.
constexpr size_t kMaxSharedBytes = 227 * 1024;

struct Barrier {
  unsigned arrived = 0;
  unsigned generation = 0;
  const char* file = nullptr;
  int line = 0;
};

struct Warp {
  Barrier barrier;
  // Two, because a lane may hand in its next value before a slow one has read this one.
  alignas(16) unsigned char slots[2][kWarp * kMaxExchangeBytes];
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool zero_fill;
  void Perform() const {
    if (zero_fill) {
      std::memset(to, 0, bytes);
    } else {
      std::memcpy(to, from, bytes);
    }
  }
};

struct Thread {
  ThreadState state;
  context::fiber fiber;
  const Barrier* waits_for = nullptr;  // in `generation`
  unsigned generation = 0;
  bool done = true;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;
  bool unfenced_copies = false;  // waited for, and not seen by wgmma yet
  std::vector<std::function<void()>> open_matrices;
  std::deque<std::vector<std::function<void()>>> matrix_groups;
  unsigned index = 0;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
};

// Memory for a fiber's stack that says where it lies, which AddressSanitizer wants to know.
struct StackAllocator {
  const void** bottom;
  context::stack_context allocate() const {
    void* const base = std::malloc(kStackBytes);
    CHECK(base != nullptr);
    *bottom = base;
    context::stack_context stack;
    stack.size = kStackBytes;
    stack.sp = static_cast<char*>(base) + kStackBytes;
    return stack;
  }
  void deallocate(context::stack_context& stack) const {
    std::free(static_cast<char*>(stack.sp) - stack.size);
  }
};

// Every thread of the running thread block. Fibers live as long as the process and run one thread
// after another: making a stack costs more than most kernels do.
class Machine {
 public:
  void Run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
           const std::function<void()>& body, bool must_await) {
    const unsigned num_threads = block.x * block.y * block.z;
    CHECK(num_threads > 0 && num_threads <= kMaxThreads && num_threads % kWarp == 0)
        << kernel << ": a thread block of " << num_threads;
    CHECK(grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y <= 65535 && grid.z <= 65535)
        << kernel << ": a grid of " << grid.x << " x " << grid.y << " x " << grid.z;
    CHECK_LE(shared_bytes, kMaxSharedBytes) << kernel;
    kernel_ = kernel;
    must_await_ = must_await;
    body_ = &body;
    while (threads_.size() < num_threads) AddThread();
    warps_.resize(num_threads / kWarp);
    num_threads_ = num_threads;
    unsigned block_number = 0;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          RunBlock(grid, block, dim3(x, y, z), shared_bytes, block_number++);
        }
      }
    }
    current = nullptr;
  }

  const unsigned char* Exchange(const void* value, size_t bytes, const char* file, int line) {
    CHECK_LE(bytes, kMaxExchangeBytes) << kernel_;
    Thread& self = *threads_[running_];
    Warp& warp = warps_[self.index / kWarp];
    unsigned char* const slots = warp.slots[warp.barrier.generation % 2];
    std::memcpy(slots + self.state.lane * kMaxExchangeBytes, value, bytes);
    Arrive(warp.barrier, kWarp, file, line);
    return slots;
  }

  void WaitForBlock(const char* file, int line) { Arrive(block_, num_threads_, file, line); }

  void CopyAsync(const Copy& copy) {
    if (eager_copies_) {
      copy.Perform();
    } else {
      threads_[running_]->open_copies.push_back(copy);
    }
  }
  void CommitCopies() {
    Thread& self = *threads_[running_];
    self.copy_groups.push_back(std::move(self.open_copies));
    self.open_copies.clear();
  }
  void WaitForCopies(int groups_in_flight) {
    std::deque<std::vector<Copy>>& groups = threads_[running_]->copy_groups;
    for (; static_cast<int>(groups.size()) > groups_in_flight; groups.pop_front()) {
      for (const Copy& copy : groups.front()) copy.Perform();
      threads_[running_]->unfenced_copies = true;
    }
  }

  void IssueMatrix(std::function<void()> multiply) {
    Thread& self = *threads_[running_];
    CHECK(!self.unfenced_copies) << kernel_ << ": wgmma may not see copies that were not fenced";
    if (eager_matrices_) {
      multiply();
      multiply = [] {};
    }
    self.open_matrices.push_back(std::move(multiply));
  }
  void CommitMatrices() {
    Thread& self = *threads_[running_];
    self.matrix_groups.push_back(std::exchange(self.open_matrices, {}));
  }
  void WaitForMatrices(int groups_in_flight) {
    auto& groups = threads_[running_]->matrix_groups;
    for (; static_cast<int>(groups.size()) > groups_in_flight; groups.pop_front()) {
      for (const auto& multiply : groups.front()) multiply();
    }
  }
  void FenceTiles() { threads_[running_]->unfenced_copies = false; }
  void Expect(bool condition, const char* what) const {
    CHECK(condition) << kernel_ << ": " << what;
  }

 private:
  void AddThread() {
    auto thread = std::make_unique<Thread>();
    Thread* const self = thread.get();
    self->index = static_cast<unsigned>(threads_.size());
    self->fiber = context::fiber(std::allocator_arg, StackAllocator{&self->stack_bottom},
                                 [this, self](context::fiber&& scheduler) {
                                   FinishSwitch(nullptr, true);
                                   scheduler_ = std::move(scheduler);
                                   for (;;) {
                                     (*body_)();
                                     self->done = true;
                                     Yield(*self);
                                   }
                                   return std::move(scheduler_);
                                 });
    threads_.push_back(std::move(thread));
  }

  void RunBlock(dim3 grid, dim3 block, dim3 block_idx, size_t shared_bytes, unsigned number) {
    void* shared = nullptr;
    if (shared_bytes > 0) {
      CHECK_EQ(posix_memalign(&shared, 128, shared_bytes), 0);
      std::memset(shared, kPoison, shared_bytes);
    }
    dynamic_shared = shared;
    // Opposite orders: what depends on the order in which threads run, fails in one.
    const bool forwards = number % 2 == 0;
    eager_copies_ = number % 2 == 0;
    eager_matrices_ = number / 2 % 2 == 0;
    block_ = Barrier();
    for (Warp& warp : warps_) warp.barrier = Barrier();
    for (unsigned i = 0; i < num_threads_; ++i) {
      Thread& thread = *threads_[i];
      thread.state.thread_idx = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
      thread.state.block_idx = block_idx;
      thread.state.block_dim = block;
      thread.state.grid_dim = grid;
      thread.state.lane = i % kWarp;
      thread.state.has_awaited = false;
      thread.waits_for = nullptr;
      thread.done = false;
    }
    // Each warp as far as it gets before the next: a barrier that is missing between warps shows.
    const auto num_warps = static_cast<unsigned>(warps_.size());
    for (unsigned left = num_threads_; left > 0;) {
      bool progress = false;
      for (unsigned i = 0; i < num_warps; ++i) {
        while (RunWarp(forwards ? i : num_warps - 1 - i, forwards, &left)) progress = true;
      }
      if (!progress) ReportHang();
    }
    std::free(shared);
  }

  // Runs every lane that can run to its next barrier; false if none could.
  bool RunWarp(unsigned warp, bool forwards, unsigned* left) {
    bool progress = false;
    for (unsigned i = 0; i < kWarp; ++i) {
      Thread& thread = *threads_[warp * kWarp + (forwards ? i : kWarp - 1 - i)];
      if (thread.done ||
          (thread.waits_for != nullptr && thread.waits_for->generation == thread.generation)) {
        continue;
      }
      thread.waits_for = nullptr;
      Resume(thread);
      progress = true;
      if (!thread.done) continue;
      --*left;
      CHECK(!must_await_ || thread.state.has_awaited)
          << kernel_ << ": may run beside the kernel before it, and does not wait for it";
      CHECK(thread.open_copies.empty()) << kernel_ << ": copies that were never committed";
      CHECK(thread.open_matrices.empty() && thread.matrix_groups.empty())
          << kernel_ << ": products that were never waited for";
      thread.copy_groups.clear();
      thread.unfenced_copies = false;
    }
    return progress;
  }

  void Arrive(Barrier& barrier, unsigned wanted, const char* file, int line) {
    CHECK(barrier.arrived == 0 || (barrier.line == line && std::strcmp(barrier.file, file) == 0))
        << kernel_ << ": divergent barrier: some threads wait at " << barrier.file << ":"
        << barrier.line << ", thread " << running_ << " at " << file << ":" << line;
    barrier.file = file;
    barrier.line = line;
    if (++barrier.arrived == wanted) {
      barrier.arrived = 0;
      ++barrier.generation;
      return;
    }
    Thread& self = *threads_[running_];
    self.waits_for = &barrier;
    self.generation = barrier.generation;
    Yield(self);
  }

  void ReportHang() const {
    for (unsigned i = 0; i < num_threads_; ++i) {
      const Thread& thread = *threads_[i];
      if (thread.done) continue;
      CHECK(false) << kernel_ << ": hangs: thread " << i << " waits at " << thread.waits_for->file
                   << ":" << thread.waits_for->line << ", where " << thread.waits_for->arrived
                   << " threads are; the others have left or wait elsewhere";
    }
  }

  void Resume(Thread& thread) {
    running_ = thread.index;
    current = &thread.state;
    StartSwitch(&scheduler_fake_stack_, thread.stack_bottom, kStackBytes);
    thread.fiber = std::move(thread.fiber).resume();
    FinishSwitch(scheduler_fake_stack_, false);
  }

  void Yield(Thread& self) {
    StartSwitch(&self.fake_stack, scheduler_bottom_, scheduler_bytes_);
    scheduler_ = std::move(scheduler_).resume();
    FinishSwitch(self.fake_stack, true);
  }

  // AddressSanitizer wants to hear of every change of stack.
#if defined(__SANITIZE_ADDRESS__)
  void StartSwitch(void** save, const void* bottom, size_t bytes) {
    __sanitizer_start_switch_fiber(save, bottom, bytes);
  }
  void FinishSwitch(void* saved, bool in_fiber) {
    if (in_fiber) {
      __sanitizer_finish_switch_fiber(saved, &scheduler_bottom_, &scheduler_bytes_);
    } else {
      __sanitizer_finish_switch_fiber(saved, nullptr, nullptr);
    }
  }
#else
  void StartSwitch(void**, const void*, size_t) {}
  void FinishSwitch(void*, bool) {}
#endif

  const char* kernel_ = "";
  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  Barrier block_;
  unsigned num_threads_ = 0;
  unsigned running_ = 0;
  bool eager_copies_ = false;
  bool eager_matrices_ = false;
  bool must_await_ = false;
  context::fiber scheduler_;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_bottom_ = nullptr;
  size_t scheduler_bytes_ = 0;
};

Machine& TheMachine() {
  static Machine* const machine = new Machine;  // fibers cannot be destroyed where they stand
  return *machine;
}

}  // namespace

void RunGrid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
             const std::function<void()>& body, bool must_await) {
  static std::mutex* const mutex = new std::mutex;
  const std::lock_guard<std::mutex> lock(*mutex);
  TheMachine().Run(kernel, grid, block, shared_bytes, body, must_await);
}

const unsigned char* ExchangeInWarp(const void* value, size_t bytes, const char* file, int line) {
  return TheMachine().Exchange(value, bytes, file, line);
}
void WaitForBlock(const char* file, int line) { TheMachine().WaitForBlock(file, line); }
void CopyAsync(void* shared, const void* global, size_t bytes, bool zero_fill) {
  TheMachine().CopyAsync({shared, global, bytes, zero_fill});
}
void CommitCopies() { TheMachine().CommitCopies(); }
void WaitForCopies(int groups_in_flight) { TheMachine().WaitForCopies(groups_in_flight); }
void IssueMatrix(std::function<void()> multiply) { TheMachine().IssueMatrix(std::move(multiply)); }
void CommitMatrices() { TheMachine().CommitMatrices(); }
void WaitForMatrices(int groups_in_flight) { TheMachine().WaitForMatrices(groups_in_flight); }
void FenceTiles() { TheMachine().FenceTiles(); }
void Expect(bool condition, const char* what) { TheMachine().Expect(condition, what); }

}  // namespace conclave::cuda::emulation
