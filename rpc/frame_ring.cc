#include "rpc/frame_ring.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kPreludeBytes = 16;
constexpr uint64_t kFrame = 1;
constexpr uint64_t kSkipToEnd = 2;

constexpr size_t AlignUp(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// The two words before a header. Read once each, for the other side could change them in between.
std::atomic_ref<uint64_t> PreludeWord(uint8_t* at, int idx) {
  return std::atomic_ref<uint64_t>(reinterpret_cast<uint64_t*>(at)[idx]);
}

absl::Status Broken(absl::string_view what, uint64_t value, uint64_t most) {
  return absl::DataLossError(
      absl::StrCat("a ring of frames holds nonsense: ", what, " is ", value, ", want 0..", most));
}

}  // namespace

size_t FrameBytes(size_t header_bytes, size_t tensor_bytes) {
  return AlignUp(kPreludeBytes + header_bytes) + AlignUp(tensor_bytes);
}

FrameRingWriter::FrameRingWriter(uint8_t* memory, size_t capacity)
    : control_(reinterpret_cast<FrameRingControl*>(memory)),
      data_(memory + sizeof(FrameRingControl)),
      capacity_(capacity) {
  CHECK(capacity > 0 && capacity % kAlignment == 0) << capacity;
}

absl::StatusOr<bool> FrameRingWriter::HasRoom(size_t bytes) {
  const uint64_t read = control_->read.load(std::memory_order_seq_cst);
  const uint64_t used = written_ - read;  // wraps to a huge number if `read` is ahead
  if (used > capacity_ || used % kAlignment != 0) return Broken("the unread part", used, capacity_);
  return bytes <= capacity_ - used;
}

absl::StatusOr<uint8_t*> FrameRingWriter::Begin(absl::string_view header, size_t tensor_bytes) {
  const size_t frame_bytes = FrameBytes(header.size(), tensor_bytes);
  CHECK_LE(frame_bytes, max_frame_bytes());
  size_t at = written_ % capacity_;
  const size_t skipped = frame_bytes <= capacity_ - at ? 0 : capacity_ - at;
  ASSIGN_OR_RETURN(bool has_room, HasRoom(skipped + frame_bytes));
  if (!has_room) {
    // Looked at again after the reader can see that we wait: one of us sees the other.
    waits_ = true;
    control_->writer_waits.store(1, std::memory_order_seq_cst);
    ASSIGN_OR_RETURN(has_room, HasRoom(skipped + frame_bytes));
    if (!has_room) return nullptr;
  }
  if (std::exchange(waits_, false)) {
    control_->writer_waits.store(0, std::memory_order_relaxed);
  }
  if (skipped > 0) {
    PreludeWord(data_ + at, 0).store(0, std::memory_order_relaxed);
    PreludeWord(data_ + at, 1).store(kSkipToEnd, std::memory_order_relaxed);
    at = 0;
  }
  uint8_t* const frame = data_ + at;
  PreludeWord(frame, 0).store(header.size() | static_cast<uint64_t>(tensor_bytes) << 32,
                              std::memory_order_relaxed);
  PreludeWord(frame, 1).store(kFrame, std::memory_order_relaxed);
  std::memcpy(frame + kPreludeBytes, header.data(), header.size());
  next_written_ = written_ + skipped + frame_bytes;
  return frame + AlignUp(kPreludeBytes + header.size());
}

void FrameRingWriter::Publish() {
  written_ = next_written_;
  control_->written.store(written_, std::memory_order_release);
}

FrameRingReader::FrameRingReader(uint8_t* memory, size_t capacity)
    : control_(reinterpret_cast<FrameRingControl*>(memory)),
      data_(memory + sizeof(FrameRingControl)),
      capacity_(capacity) {
  CHECK(capacity > 0 && capacity % kAlignment == 0) << capacity;
}

absl::StatusOr<bool> FrameRingReader::Next(RingFrame* frame) {
  const uint64_t written = control_->written.load(std::memory_order_acquire);
  if (written - released_ > capacity_) {
    return Broken("the unread part", written - released_, capacity_);
  }
  while (written != read_) {
    const uint64_t unread = written - read_;  // wraps if `written` fell below what was read
    const size_t at = read_ % capacity_;
    const size_t to_end = capacity_ - at;
    if (unread > capacity_ || unread % kAlignment != 0) {
      return Broken("the unread part", unread, capacity_);
    }
    const uint64_t kind = PreludeWord(data_ + at, 1).load(std::memory_order_relaxed);
    if (kind == kSkipToEnd) {
      if (at == 0 || to_end > unread) return Broken("what is skipped", to_end, unread);
      read_ += to_end;
      continue;
    }
    if (kind != kFrame) return Broken("the kind of a frame", kind, kSkipToEnd);
    const uint64_t lengths = PreludeWord(data_ + at, 0).load(std::memory_order_relaxed);
    const size_t header_bytes = lengths & 0xffffffff;
    const size_t tensor_bytes = lengths >> 32;
    const size_t frame_bytes = FrameBytes(header_bytes, tensor_bytes);  // below 2^34
    if (frame_bytes > unread || frame_bytes > to_end) {
      return Broken("the length of a frame", frame_bytes, unread < to_end ? unread : to_end);
    }
    frame->header.assign(reinterpret_cast<const char*>(data_ + at + kPreludeBytes), header_bytes);
    frame->tensor =
        absl::MakeConstSpan(data_ + at + AlignUp(kPreludeBytes + header_bytes), tensor_bytes);
    read_ += frame_bytes;
    return true;
  }
  return false;
}

bool FrameRingReader::ReleaseRead() {
  if (released_ == read_) return false;
  released_ = read_;
  control_->read.store(read_, std::memory_order_seq_cst);
  return control_->writer_waits.load(std::memory_order_seq_cst) != 0;
}

}  // namespace conclave
