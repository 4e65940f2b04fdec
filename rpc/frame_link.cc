#include "rpc/frame_link.h"

#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kRingBytes = FrameRingBytes(limits::kSharedRingBytes);
constexpr size_t kDispatchOffset = kPageBytes;
constexpr size_t kCombineOffset = kDispatchOffset + kRingBytes;
static_assert(kCombineOffset % 64 == 0);

size_t OutOffset(FrameLink::Side side) {
  return side == FrameLink::Side::kWorker ? kDispatchOffset : kCombineOffset;
}
size_t InOffset(FrameLink::Side side) {
  return side == FrameLink::Side::kWorker ? kCombineOffset : kDispatchOffset;
}

}  // namespace

size_t FrameLinkBytes() {
  return (kCombineOffset + kRingBytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

FrameLink::FrameLink(Side side, SharedMemory rings, std::unique_ptr<Doorbell> bell,
                     BufferPool* pool)
    : rings_(std::move(rings)),
      bell_(std::move(bell)),
      pool_(pool),
      writer_(rings_.data() + OutOffset(side), limits::kSharedRingBytes),
      reader_(rings_.data() + InOffset(side), limits::kSharedRingBytes) {
  CHECK_EQ(rings_.size(), FrameLinkBytes());
}

absl::Status FrameLink::Send(const google::protobuf::MessageLite& header, Pieces tensor) {
  CHECK(header.SerializeToString(&header_)) << "the header passes 2 GiB";
  size_t tensor_bytes = 0;
  for (const absl::Span<const uint8_t> piece : tensor) tensor_bytes += piece.size();
  if (waiting_.empty()) {
    ASSIGN_OR_RETURN(const bool sent, TrySend(header_, tensor_bytes, tensor));
    if (sent) {
      bell_->Ring();
      return absl::OkStatus();
    }
  }
  Waiting waiting{header_, pool_->Take(tensor_bytes), tensor_bytes};
  uint8_t* to = waiting.tensor.get();
  for (const absl::Span<const uint8_t> piece : tensor) {
    std::memcpy(to, piece.data(), piece.size());
    to += piece.size();
  }
  waiting_.push_back(std::move(waiting));
  return absl::OkStatus();
}

absl::StatusOr<bool> FrameLink::TrySend(const std::string& header, size_t tensor_bytes,
                                        Pieces tensor) {
  ASSIGN_OR_RETURN(uint8_t * to, writer_.Begin(header, tensor_bytes));
  if (to == nullptr) return false;
  for (const absl::Span<const uint8_t> piece : tensor) {
    std::memcpy(to, piece.data(), piece.size());
    to += piece.size();
  }
  writer_.Publish();
  return true;
}

absl::StatusOr<bool> FrameLink::SendWaiting() {
  bool sent_any = false;
  while (!waiting_.empty()) {
    const Waiting& front = waiting_.front();
    const absl::Span<const uint8_t> tensor(front.tensor.get(), front.tensor_bytes);
    ASSIGN_OR_RETURN(const bool sent, TrySend(front.header, front.tensor_bytes, {tensor}));
    if (!sent) break;
    waiting_.pop_front();
    sent_any = true;
  }
  return sent_any;
}

absl::StatusOr<bool> FrameLink::Poll(int max_frames, OnFrame on_frame) {
  ASSIGN_OR_RETURN(const bool sent, SendWaiting());
  int taken = 0;
  bool writer_waits = false;
  for (; taken < max_frames; ++taken) {
    ASSIGN_OR_RETURN(const bool there, reader_.Next(&frame_));
    if (!there) break;
    RETURN_IF_ERROR(on_frame(frame_.header, frame_.tensor));
    writer_waits = reader_.ReleaseRead() || writer_waits;
  }
  if (sent || writer_waits) bell_->Ring();
  return sent || taken > 0;
}

}  // namespace conclave
