#include "model/page_hints.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace conclave {
namespace {

uintptr_t PageBytes() {
  static const uintptr_t bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

void PopulatePages(const void* data, size_t bytes) {
#if defined(MADV_POPULATE_READ)
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / PageBytes() * PageBytes();
  const uintptr_t end = reinterpret_cast<uintptr_t>(data) + bytes;
  if (bytes > 0) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ);
#endif
}

void ReleasePages(const void* data, size_t bytes) {
  const uintptr_t page = PageBytes();
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace conclave
