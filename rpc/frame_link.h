#pragma once

#include <google/protobuf/message_lite.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace conclave {

// One end of a way between one worker and one shard beside their gRPC stream: the frames of
// rpc/expert_frame.h, header and tensor apart. It was agreed on by a call that stays open as long
// as it is used, and whose end is the end of the link. Used by one thread: the one that sleeps at
// its process's doorbell, which the link rings when there is something to poll for.
class FrameLink {
 public:
  // What a frame's tensor is gathered from.
  using Pieces = absl::Span<const absl::Span<const uint8_t>>;
  // Takes a frame's header, as it came, and its tensor. Not OK: the frame is not one of ours.
  using OnFrame =
      absl::FunctionRef<absl::Status(const std::string& header, absl::Span<const uint8_t> tensor)>;

  virtual ~FrameLink() = default;

  // Copies the frame and sends it, now or when there is room; does not block. An error means that
  // the link is of no use any more; what was sent may be lost.
  virtual absl::Status Send(const google::protobuf::MessageLite& header, Pieces tensor) = 0;

  // Sends what waits, then takes up to `max_frames` frames that are there. A frame's tensor is
  // valid during the call. Returns whether it did anything; does not block. Errors: as of Send, and
  // those of `on_frame`.
  virtual absl::StatusOr<bool> Poll(int max_frames, OnFrame on_frame) = 0;

  // Frames that wait for room.
  virtual size_t num_waiting() const = 0;
};

}  // namespace conclave
