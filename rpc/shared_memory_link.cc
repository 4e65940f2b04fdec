#include "rpc/shared_memory_link.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
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

size_t OutOffset(SharedMemoryLink::Side side) {
  return side == SharedMemoryLink::Side::kWorker ? kDispatchOffset : kCombineOffset;
}
size_t InOffset(SharedMemoryLink::Side side) {
  return side == SharedMemoryLink::Side::kWorker ? kCombineOffset : kDispatchOffset;
}

}  // namespace

size_t SharedMemoryLinkBytes() {
  return (kCombineOffset + kRingBytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

SharedMemoryLink::SharedMemoryLink(Side side, SharedMemory rings, std::unique_ptr<Doorbell> bell,
                                   BufferPool* pool)
    : rings_(std::move(rings)),
      bell_(std::move(bell)),
      pool_(pool),
      writer_(rings_.data() + OutOffset(side), limits::kSharedRingBytes),
      reader_(rings_.data() + InOffset(side), limits::kSharedRingBytes) {
  CHECK_EQ(rings_.size(), SharedMemoryLinkBytes());
}

absl::Status SharedMemoryLink::Send(const google::protobuf::MessageLite& header, Pieces tensor) {
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

absl::StatusOr<bool> SharedMemoryLink::TrySend(const std::string& header, size_t tensor_bytes,
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

absl::StatusOr<bool> SharedMemoryLink::SendWaiting() {
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

absl::StatusOr<bool> SharedMemoryLink::Poll(int max_frames, OnFrame on_frame) {
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

absl::StatusOr<SharedMemoryOffering> SharedMemoryOffering::Make(const Doorbell& bell) {
  ASSIGN_OR_RETURN(SharedMemory rings, SharedMemory::Create(SharedMemoryLinkBytes()));
  SharedMemoryOffering offering(std::move(rings));
  offering.offer_.set_boot_id(BootId());
  *offering.offer_.mutable_rings() = offering.rings_.region();
  *offering.offer_.mutable_doorbell() = bell.region();
  return offering;
}

absl::StatusOr<std::unique_ptr<FrameLink>> SharedMemoryOffering::Open(
    const v1::SharedMemoryAnswer& answer, BufferPool* pool) {
  if (!rings_.IsConfirmed(answer.confirmation())) {
    return absl::FailedPreconditionError("the shard has other memory than the one it was offered");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Doorbell> bell, Doorbell::Open(answer.doorbell()));
  rings_.CloseFile();
  return std::make_unique<SharedMemoryLink>(SharedMemoryLink::Side::kWorker, std::move(rings_),
                                            std::move(bell), pool);
}

absl::StatusOr<std::unique_ptr<FrameLink>> AcceptSharedMemory(const v1::SharedMemoryOffer& offer,
                                                              const Doorbell& bell,
                                                              BufferPool* pool,
                                                              v1::SharedMemoryAnswer* answer) {
  if (offer.boot_id().empty() || offer.boot_id() != BootId()) {
    return absl::FailedPreconditionError("the worker is on another host");
  }
  if (!bell.is_shared()) {
    return absl::FailedPreconditionError("this system gives no memory to share");
  }
  if (offer.rings().bytes() != SharedMemoryLinkBytes()) {
    return absl::FailedPreconditionError(absl::StrCat("the memory has ", offer.rings().bytes(),
                                                      " bytes, want ", SharedMemoryLinkBytes()));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Doorbell> worker_bell, Doorbell::Open(offer.doorbell()));
  ASSIGN_OR_RETURN(SharedMemory rings, SharedMemory::Open(offer.rings(), SharedMemoryLinkBytes()));
  answer->set_confirmation(rings.Confirm());
  *answer->mutable_doorbell() = bell.region();
  return std::make_unique<SharedMemoryLink>(SharedMemoryLink::Side::kShard, std::move(rings),
                                            std::move(worker_bell), pool);
}

}  // namespace conclave
