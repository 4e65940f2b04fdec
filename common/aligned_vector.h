#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace conclave {

// Allocates on the edge of a cache line, so that a kernel may write whole lines.
template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>& /*other*/) {}  // NOLINT: allocators convert implicitly

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* values, size_t /*count*/) { ::operator delete(values, kLine); }
  bool operator==(const LineAllocator& /*other*/) const { return true; }
};

// A vector whose first value is 64-byte aligned.
template <typename T>
using AlignedVector = std::vector<T, LineAllocator<T>>;

}  // namespace conclave
