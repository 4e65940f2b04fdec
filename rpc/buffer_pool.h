#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace conclave {

// Reuses the memory of tensors: a buffer of megabytes that malloc gives back to the kernel after
// each use costs a page fault per 4 KiB on the next, about 0.25 ms a MiB. Thread-safe; buffers may
// outlive the pool, and come back to it from whichever thread drops them.
class BufferPool {
 public:
  // Keeps at most this many bytes that nobody uses.
  explicit BufferPool(size_t max_idle_bytes);

  // At least `bytes` bytes, 64-byte aligned, not initialised.
  std::shared_ptr<uint8_t> Take(size_t bytes);

  size_t idle_bytes() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace conclave
