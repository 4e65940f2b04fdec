#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/conclave/v1/expert_shard.pb.h"
#include "rpc/buffer_pool.h"
#include "rpc/doorbell.h"
#include "rpc/frame_link.h"
#include "rpc/frame_ring.h"
#include "rpc/shared_memory.h"

namespace conclave {

// Bytes of the memory that a worker offers: a header page, then the ring of dispatches, then the
// ring of combines.
size_t SharedMemoryLinkBytes();

// A link through memory that worker and shard both see: frames out through one ring and in through
// the other.
class SharedMemoryLink final : public FrameLink {
 public:
  enum class Side { kWorker, kShard };

  // `rings` has SharedMemoryLinkBytes(); `bell` wakes the other end. `pool` holds frames that wait.
  SharedMemoryLink(Side side, SharedMemory rings, std::unique_ptr<Doorbell> bell, BufferPool* pool);

  // DataLoss: the other end broke the rings.
  absl::Status Send(const google::protobuf::MessageLite& header, Pieces tensor) override;
  absl::StatusOr<bool> Poll(int max_frames, OnFrame on_frame) override;
  size_t num_waiting() const override { return waiting_.size(); }

 private:
  struct Waiting {
    std::string header;
    std::shared_ptr<uint8_t> tensor;
    size_t tensor_bytes = 0;
  };

  // False: no room.
  absl::StatusOr<bool> TrySend(const std::string& header, size_t tensor_bytes, Pieces tensor);
  absl::StatusOr<bool> SendWaiting();

  const SharedMemory rings_;
  const std::unique_ptr<Doorbell> bell_;
  BufferPool* const pool_;
  FrameRingWriter writer_;
  FrameRingReader reader_;
  std::deque<Waiting> waiting_;
  std::string header_;  // of the frame being sent
  RingFrame frame_;     // being taken
};

// A worker's side of agreeing on such a link.
class SharedMemoryOffering {
 public:
  // `bell`, which is shared, is where the thread that will use the link sleeps. An error is one of
  // the system's: it has no memory to share.
  static absl::StatusOr<SharedMemoryOffering> Make(const Doorbell& bell);

  const v1::SharedMemoryOffer& offer() const { return offer_; }

  // What the shard's answer makes of the offer. Call once. FailedPrecondition: it has other memory
  // than ours. `pool` is borrowed by the link.
  absl::StatusOr<std::unique_ptr<FrameLink>> Open(const v1::SharedMemoryAnswer& answer,
                                                  BufferPool* pool);

 private:
  explicit SharedMemoryOffering(SharedMemory rings) : rings_(std::move(rings)) {}

  v1::SharedMemoryOffer offer_;
  SharedMemory rings_;  // until the link has it
};

// A shard's side: maps what is offered and says so in `answer`. `bell` is where the thread that
// will use the link sleeps. FailedPrecondition: the memory is out of reach, or not as it must be.
absl::StatusOr<std::unique_ptr<FrameLink>> AcceptSharedMemory(const v1::SharedMemoryOffer& offer,
                                                              const Doorbell& bell,
                                                              BufferPool* pool,
                                                              v1::SharedMemoryAnswer* answer);

}  // namespace conclave
