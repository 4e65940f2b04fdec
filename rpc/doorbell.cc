#include "rpc/doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <utility>

#include "absl/time/clock.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

constexpr size_t kBytes = 4096;
static_assert(std::atomic<uint32_t>::is_always_lock_free);

std::atomic<uint32_t>* WordAt(const SharedMemory& memory, size_t offset) {
  return reinterpret_cast<std::atomic<uint32_t>*>(memory.data() + offset);
}

}  // namespace

Doorbell::Doorbell() : word_(&own_word_), sleepers_(&own_sleepers_) {
  absl::StatusOr<SharedMemory> memory = SharedMemory::Create(kBytes);
  if (!memory.ok()) return;  // it then serves this process alone
  memory_ = *std::move(memory);
  word_ = WordAt(memory_, SharedMemory::kHeaderBytes);
  sleepers_ = WordAt(memory_, 2 * SharedMemory::kHeaderBytes);  // a cache line of its own
}

Doorbell::Doorbell(SharedMemory memory)
    : memory_(std::move(memory)),
      word_(WordAt(memory_, SharedMemory::kHeaderBytes)),
      sleepers_(WordAt(memory_, 2 * SharedMemory::kHeaderBytes)) {}

absl::StatusOr<std::unique_ptr<Doorbell>> Doorbell::Open(const v1::SharedMemoryRegion& region) {
  ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Open(region, kBytes));
  return std::unique_ptr<Doorbell>(new Doorbell(std::move(memory)));
}

void Doorbell::Ring() {
  // Sequentially consistent, as the sleeper's side is: either it sees the new count, or we see it.
  word_->fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_->load(std::memory_order_seq_cst) == 0) return;
  syscall(SYS_futex, word_, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Doorbell::Wait(uint32_t seen, absl::Time deadline) {
  timespec timeout;
  const timespec* limit = nullptr;
  if (deadline != absl::InfiniteFuture()) {
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    timeout = absl::ToTimespec(std::min(left, absl::Hours(1)));
    limit = &timeout;
  }
  sleepers_->fetch_add(1, std::memory_order_seq_cst);
  if (word_->load(std::memory_order_seq_cst) == seen) {
    syscall(SYS_futex, word_, FUTEX_WAIT, seen, limit, nullptr, 0);
  }
  sleepers_->fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace conclave
