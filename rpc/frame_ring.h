#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace conclave {

// A ring of frames in shared memory, from one writing thread to one reading thread. Both indices
// count bytes since the start and never fall; each side keeps its own and reads the other's, which
// it believes only as far as the ring allows.
//
// A frame is one piece of memory, a multiple of 64 bytes:
//   8 bytes: length of the header | length of the tensor << 32
//   8 bytes: 1, or 2 for "nothing until the end of the ring"
//   the header, then the tensor from the next multiple of 64 on
struct FrameRingControl {
  alignas(64) std::atomic<uint64_t> written{0};
  alignas(64) std::atomic<uint64_t> read{0};
  alignas(64) std::atomic<uint32_t> writer_waits{0};  // for room
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

// Bytes that a ring of `capacity` takes; capacity is a multiple of 64.
constexpr size_t FrameRingBytes(size_t capacity) { return sizeof(FrameRingControl) + capacity; }

// Bytes of a frame in a ring.
size_t FrameBytes(size_t header_bytes, size_t tensor_bytes);

class FrameRingWriter {
 public:
  // `memory`, 64-byte aligned, held zeros when both sides began. Borrowed.
  FrameRingWriter(uint8_t* memory, size_t capacity);

  // A frame must not take more, so that one always fits once the reader has read all.
  size_t max_frame_bytes() const { return capacity_ / 2; }

  // Starts a frame with this header: where its `tensor_bytes` bytes go, or null if there is no room
  // now. The reader then says in ReleaseRead that there may be. DataLoss if the reader's index is
  // impossible.
  absl::StatusOr<uint8_t*> Begin(absl::string_view header, size_t tensor_bytes);
  // Shows the frame begun last to the reader.
  void Publish();

 private:
  // DataLoss, or whether `bytes` are free.
  absl::StatusOr<bool> HasRoom(size_t bytes);

  FrameRingControl* const control_;
  uint8_t* const data_;
  const size_t capacity_;
  uint64_t written_ = 0;       // what the reader may see
  uint64_t next_written_ = 0;  // with the frame that was begun
  bool waits_ = false;         // what control_ says
};

struct RingFrame {
  std::string header;                // a copy
  absl::Span<const uint8_t> tensor;  // in the ring, where the other side could change it
};

class FrameRingReader {
 public:
  FrameRingReader(uint8_t* memory, size_t capacity);

  // The next frame, if there is one: its tensor is there until ReleaseRead. DataLoss if what the
  // writer wrote is no frame; the ring is then of no further use.
  absl::StatusOr<bool> Next(RingFrame* frame);

  // Gives back the memory of all frames read. True if the writer waits for it.
  bool ReleaseRead();

 private:
  FrameRingControl* const control_;
  uint8_t* const data_;
  const size_t capacity_;
  uint64_t read_ = 0;
  uint64_t released_ = 0;
};

}  // namespace conclave
