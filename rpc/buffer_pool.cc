#include "rpc/buffer_pool.h"

#include <bit>
#include <map>
#include <new>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace conclave {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kSmallestBuffer = 4096;

struct AlignedDelete {
  void operator()(uint8_t* data) const { ::operator delete[](data, kAlignment); }
};
using Buffer = std::unique_ptr<uint8_t, AlignedDelete>;

}  // namespace

struct BufferPool::State {
  explicit State(size_t max_idle) : max_idle_bytes(max_idle) {}

  Buffer TakeIdle(size_t capacity) {
    absl::MutexLock lock(&mutex);
    const auto found = idle.find(capacity);
    if (found == idle.end()) return nullptr;
    Buffer buffer = std::move(found->second);
    idle.erase(found);
    idle_bytes -= capacity;
    return buffer;
  }

  void GiveBack(Buffer buffer, size_t capacity) {
    absl::MutexLock lock(&mutex);
    if (idle_bytes + capacity > max_idle_bytes) return;
    idle_bytes += capacity;
    idle.emplace(capacity, std::move(buffer));
  }

  const size_t max_idle_bytes;
  absl::Mutex mutex;
  std::multimap<size_t, Buffer> idle ABSL_GUARDED_BY(mutex);  // by capacity
  size_t idle_bytes ABSL_GUARDED_BY(mutex) = 0;
};

BufferPool::BufferPool(size_t max_idle_bytes) : state_(std::make_shared<State>(max_idle_bytes)) {}

std::shared_ptr<uint8_t> BufferPool::Take(size_t bytes) {
  // Powers of two, so that a buffer fits every later request of about its size.
  const size_t capacity = std::bit_ceil(bytes < kSmallestBuffer ? kSmallestBuffer : bytes);
  Buffer buffer = state_->TakeIdle(capacity);
  if (buffer == nullptr) {
    buffer = Buffer(static_cast<uint8_t*>(::operator new[](capacity, kAlignment)));
  }
  return std::shared_ptr<uint8_t>(buffer.release(), [state = state_, capacity](uint8_t* data) {
    state->GiveBack(Buffer(data), capacity);
  });
}

size_t BufferPool::idle_bytes() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->idle_bytes;
}

}  // namespace conclave
