#pragma once

#include <google/protobuf/message_lite.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "rpc/buffer_pool.h"
#include "rpc/doorbell.h"
#include "rpc/frame_ring.h"
#include "rpc/shared_memory.h"

namespace conclave {

// Bytes of the memory that a worker offers: a header page, then the ring of dispatches, then the
// ring of combines.
size_t FrameLinkBytes();

// One end of the way through shared memory between one worker and one shard: the frames of
// rpc/expert_frame.h, header and tensor apart, out through one ring and in through the other. Used
// by one thread: the one that sleeps at its process's doorbell.
class FrameLink {
 public:
  enum class Side { kWorker, kShard };
  // What a frame's tensor is gathered from.
  using Pieces = absl::Span<const absl::Span<const uint8_t>>;
  // Takes a frame's header, as it came, and its tensor. Not OK: the frame is not one of ours.
  using OnFrame =
      absl::FunctionRef<absl::Status(const std::string& header, absl::Span<const uint8_t> tensor)>;

  // `rings` has FrameLinkBytes(); `bell` wakes the other end. `pool` holds frames that wait.
  FrameLink(Side side, SharedMemory rings, std::unique_ptr<Doorbell> bell, BufferPool* pool);

  // Copies the frame into the ring and wakes the other end, or keeps a copy until there is room.
  // DataLoss: the other end broke the rings; the link is of no use any more.
  absl::Status Send(const google::protobuf::MessageLite& header, Pieces tensor);

  // Sends what waits, then takes up to `max_frames` frames that are there. A frame's tensor is
  // valid during the call. Returns whether it did anything. Errors: DataLoss as above, and those
  // of `on_frame`.
  absl::StatusOr<bool> Poll(int max_frames, OnFrame on_frame);

  // Frames that wait for room.
  size_t num_waiting() const { return waiting_.size(); }

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

}  // namespace conclave
