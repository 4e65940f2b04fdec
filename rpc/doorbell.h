#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/conclave/v1/expert_shard.pb.h"
#include "rpc/shared_memory.h"

namespace conclave {

// Wakes a thread that sleeps, from this process or from another of the host. The sleeper reads
// rings(), looks at everything it is woken for, and sleeps only if nobody has rung since: no ring
// is missed. A peer that writes nonsense into it can keep its owner awake or asleep until the
// owner's own deadline, and nothing more.
class Doorbell {
 public:
  // One that others of this host can be given, if the system lets them.
  Doorbell();
  // Another process's. The errors of SharedMemory::Open.
  static absl::StatusOr<std::unique_ptr<Doorbell>> Open(const v1::SharedMemoryRegion& region);

  // Whether region() may be given to another process.
  bool is_shared() const { return memory_.size() > 0; }
  v1::SharedMemoryRegion region() const { return memory_.region(); }

  uint32_t rings() const { return word_->load(std::memory_order_acquire); }

  // Any thread. Cheap unless somebody sleeps.
  void Ring();

  // Blocks until rings() is not `seen`, or `deadline`; may also return early.
  void Wait(uint32_t seen, absl::Time deadline);

 private:
  explicit Doorbell(SharedMemory memory);

  SharedMemory memory_;
  // In memory_, or below where there is none.
  std::atomic<uint32_t>* word_ = nullptr;
  std::atomic<uint32_t>* sleepers_ = nullptr;
  std::atomic<uint32_t> own_word_{0};
  std::atomic<uint32_t> own_sleepers_{0};
};

}  // namespace conclave
