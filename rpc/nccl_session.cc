#include "rpc/nccl_session.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/fp8_rows.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

// While a transfer is under way its thread looks all the time at first, for most take microseconds,
// and then less and less often.
constexpr absl::Duration kSpin = absl::Microseconds(100);
constexpr absl::Duration kLongestPause = absl::Milliseconds(1);
constexpr int kMaxAnnouncementsAtOnce = 64;

// What a frame takes of the window: also one without a tensor takes something.
uint64_t CostOf(size_t header_bytes, size_t tensor_bytes) {
  return header_bytes + tensor_bytes + 64;
}

absl::Status BrokenProtocol(absl::string_view what, uint64_t value, absl::string_view allowed) {
  return absl::DataLossError(absl::StrCat("the peer of an NCCL link announces nonsense: ", what,
                                          " is ", value, ", want ", allowed));
}

}  // namespace

NcclSession::NcclSession(NcclTransport* transport, NcclTerms terms, std::unique_ptr<Doorbell> bell,
                         std::unique_ptr<FrameLink> headers, Doorbell* user_bell,
                         NcclLink::OnReady on_ready)
    : transport_(transport),
      terms_(std::move(terms)),
      bell_(std::move(bell)),
      headers_(std::move(headers)),
      on_ready_(std::move(on_ready)),
      set_up_by_(absl::Now() + transport->options().setup_timeout),
      user_bell_(user_bell) {}

absl::Status NcclSession::Send(std::string header, FrameLink::Pieces tensor) {
  Frame frame;
  frame.header = std::move(header);
  for (const absl::Span<const uint8_t> piece : tensor) frame.bytes += piece.size();
  CHECK_LE(frame.bytes, limits::kMaxExpertFrameBytes);
  frame.tensor = transport_->pool().Take(frame.bytes);
  uint8_t* to = frame.tensor.get();
  for (const absl::Span<const uint8_t> piece : tensor) {
    to = std::copy(piece.begin(), piece.end(), to);  // a piece may be empty, and of null
  }
  if (terms_.rank == 0 && terms_.fp8_dispatches) {
    const size_t num_rows = frame.bytes / (sizeof(BFloat16) * terms_.hidden_size);
    const auto* rows = reinterpret_cast<const BFloat16*>(frame.tensor.get());
    frame.bytes = Fp8RowsBytes(num_rows, terms_.hidden_size);
    std::shared_ptr<uint8_t> encoded = transport_->pool().Take(frame.bytes);
    EncodeFp8Rows(rows, num_rows, terms_.hidden_size, encoded.get());
    frame.tensor = std::move(encoded);
  }
  {
    absl::MutexLock lock(&mutex_);
    if (!ended_.ok()) return ended_;
    outgoing_.push_back(std::move(frame));
  }
  bell_->Ring();
  return absl::OkStatus();
}

absl::StatusOr<bool> NcclSession::Poll(int max_frames, FrameLink::OnFrame on_frame) {
  std::deque<Frame> taken;
  {
    absl::MutexLock lock(&mutex_);
    while (!ready_.empty() && taken.size() < static_cast<size_t>(std::max(max_frames, 0))) {
      taken.push_back(std::move(ready_.front()));
      ready_.pop_front();
    }
    if (taken.empty() && ready_.empty() && !ended_.ok()) return ended_;
  }
  for (const Frame& frame : taken) {
    RETURN_IF_ERROR(on_frame(frame.header, absl::MakeConstSpan(frame.tensor.get(), frame.bytes)));
    taken_.fetch_add(CostOf(frame.header.size(), frame.done), std::memory_order_relaxed);
  }
  if (!taken.empty()) bell_->Ring();  // there may be credit to give
  return !taken.empty();
}

size_t NcclSession::num_waiting() const {
  absl::MutexLock lock(&mutex_);
  return outgoing_.size();
}

void NcclSession::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    user_bell_ = nullptr;
    stopping_ = true;
  }
  bell_->Ring();
}

bool NcclSession::Stopping() const {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void NcclSession::Ready(const absl::Status& status) {
  const NcclLink::OnReady on_ready = std::exchange(on_ready_, nullptr);
  if (on_ready != nullptr) on_ready(status);
}

void NcclSession::Main() {
  absl::Status status = SetUp();
  if (status.ok()) status = Serve();
  {
    absl::MutexLock lock(&mutex_);
    ended_ = status;
    if (user_bell_ != nullptr) user_bell_->Ring();
  }
  Ready(status);
  out_.reset();  // aborts
  in_.reset();
}

absl::StatusOr<std::vector<std::unique_ptr<NcclBuffer>>> NcclSession::AllocateBuffers() const {
  std::vector<std::unique_ptr<NcclBuffer>> buffers;
  for (int i = 0; i < terms_.num_frames; ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<NcclBuffer> buffer,
                     transport_->api().Allocate(terms_.frame_bytes));
    buffers.push_back(std::move(buffer));
  }
  return buffers;
}

absl::Status NcclSession::SetUp() {
  const absl::Duration timeout = transport_->options().transfer_timeout;
  // Both ends join in the same order.
  for (const bool dispatches : {true, false}) {
    ASSIGN_OR_RETURN(std::vector<std::unique_ptr<NcclBuffer>> buffers, AllocateBuffers());
    ASSIGN_OR_RETURN(
        std::unique_ptr<NcclComm> comm,
        transport_->api().Join(dispatches ? terms_.dispatch_id : terms_.combine_id, terms_.rank));
    (dispatches == (terms_.rank == 0) ? out_ : in_) =
        std::make_unique<NcclLane>(std::move(comm), std::move(buffers), timeout);
  }
  if (terms_.rank == 0) Hello();
  return absl::OkStatus();
}

void NcclSession::Hello() {
  Frame& hello = sending_.emplace();
  hello.kind = v1::NcclAnnouncement::HELLO;
  hello.bytes = sizeof(terms_.hello);
  hello.tensor = transport_->pool().Take(hello.bytes);
  std::memcpy(hello.tensor.get(), &terms_.hello, hello.bytes);
}

absl::Status NcclSession::Serve() {
  const auto on_announcement = [this](const std::string& header, absl::Span<const uint8_t> tensor) {
    return OnAnnouncement(header, tensor);
  };
  bool hello_announced = false;
  absl::Time last_news = absl::Now();
  while (true) {
    const uint32_t rings = bell_->rings();  // before looking, so that no ring is missed
    if (Stopping()) return absl::CancelledError("the NCCL link is dropped");
    const absl::Time now = absl::Now();
    if (!is_ready_ && now >= set_up_by_) {
      return absl::DeadlineExceededError(
          absl::StrCat("NCCL does not connect within ",
                       absl::FormatDuration(transport_->options().setup_timeout)));
    }
    ASSIGN_OR_RETURN(bool news, headers_->Poll(kMaxAnnouncementsAtOnce, on_announcement));
    ASSIGN_OR_RETURN(const bool done, PollLanes(now));
    news = news || done;
    if (out_->joined() && in_->joined()) {
      if (sending_.has_value() && sending_->kind == v1::NcclAnnouncement::HELLO &&
          !std::exchange(hello_announced, true)) {
        RETURN_IF_ERROR(Announce(v1::NcclAnnouncement::HELLO, *sending_));
      }
      ASSIGN_OR_RETURN(const bool receiving, StartReceives(now));
      ASSIGN_OR_RETURN(const bool sending, StartSends(now));
      news = news || receiving || sending;
    }
    RETURN_IF_ERROR(Deliver());
    RETURN_IF_ERROR(SendCredit());
    if (news) {
      last_news = now;
    } else {
      Wait(rings, last_news);
    }
  }
}

void NcclSession::Wait(uint32_t rings, absl::Time last_news) {
  if (!out_->busy() && !in_->busy()) {
    bell_->Wait(rings, is_ready_ ? absl::InfiniteFuture() : set_up_by_);
    return;
  }
  const absl::Time now = absl::Now();
  if (now - last_news < kSpin) {
    std::this_thread::yield();
    return;
  }
  bell_->Wait(rings, now + std::min(kLongestPause, (now - last_news) / 8));
}

absl::Status NcclSession::OnAnnouncement(const std::string& header,
                                         absl::Span<const uint8_t> tensor) {
  v1::NcclAnnouncement announcement;
  if (!announcement.ParseFromString(header) || !tensor.empty()) {
    return absl::InvalidArgumentError("an announcement of an NCCL link does not parse");
  }
  if (announcement.taken_bytes() < peer_taken_ || announcement.taken_bytes() > sent_) {
    return BrokenProtocol("taken_bytes", announcement.taken_bytes(),
                          absl::StrCat(peer_taken_, "..", sent_));
  }
  peer_taken_ = announcement.taken_bytes();
  switch (announcement.kind()) {
    case v1::NcclAnnouncement::CREDIT:
      return absl::OkStatus();
    case v1::NcclAnnouncement::HELLO:
      if (is_ready_ || !incoming_.empty() || announcement.tensor_bytes() != sizeof(terms_.hello)) {
        return BrokenProtocol("a hello's tensor_bytes", announcement.tensor_bytes(),
                              "8, once and first");
      }
      incoming_.emplace_back();
      incoming_.back().kind = v1::NcclAnnouncement::HELLO;
      incoming_.back().bytes = announcement.tensor_bytes();
      incoming_.back().tensor = transport_->pool().Take(announcement.tensor_bytes());
      return absl::OkStatus();
    case v1::NcclAnnouncement::FRAME:
      return OnFrameBegins(announcement);
    default:
      return BrokenProtocol("kind", static_cast<uint64_t>(announcement.kind()), "1..3");
  }
}

absl::Status NcclSession::OnFrameBegins(v1::NcclAnnouncement& announcement) {
  const uint64_t bytes = announcement.tensor_bytes();
  if (!is_ready_) return BrokenProtocol("kind", announcement.kind(), "HELLO first");
  if (bytes > limits::kMaxExpertFrameBytes) {
    return BrokenProtocol("tensor_bytes", bytes, absl::StrCat("0..", limits::kMaxExpertFrameBytes));
  }
  const uint64_t taken = taken_.load(std::memory_order_relaxed);
  announced_ += CostOf(announcement.header().size(), bytes);
  if (announced_ - taken > limits::kNcclWindowBytes) {
    return BrokenProtocol("what was not taken yet", announced_ - taken,
                          absl::StrCat("0..", limits::kNcclWindowBytes));
  }
  Frame& frame = incoming_.emplace_back();
  frame.header = std::move(*announcement.mutable_header());
  frame.bytes = bytes;
  frame.tensor = transport_->pool().Take(bytes);
  return absl::OkStatus();
}

absl::StatusOr<bool> NcclSession::PollLanes(absl::Time now) {
  ASSIGN_OR_RETURN(const bool sent, out_->Poll(now, [](absl::Span<const uint8_t>) {}));
  size_t receiving = 0;  // of incoming_: the first that is not whole
  ASSIGN_OR_RETURN(const bool received, in_->Poll(now, [&](absl::Span<const uint8_t> bytes) {
    while (incoming_[receiving].done == incoming_[receiving].bytes) ++receiving;
    Frame& frame = incoming_[receiving];
    std::memcpy(frame.tensor.get() + frame.done, bytes.data(), bytes.size());
    frame.done += bytes.size();
  }));
  return sent || received;
}

absl::StatusOr<bool> NcclSession::StartReceives(absl::Time now) {
  bool any = false;
  for (Frame& frame : incoming_) {
    while (frame.started < frame.bytes) {
      if (!in_->MayStart()) return any;
      const size_t bytes = std::min(terms_.frame_bytes, frame.bytes - frame.started);
      RETURN_IF_ERROR(in_->Receive(bytes, now));
      frame.started += bytes;
      any = true;
    }
  }
  return any;
}

absl::StatusOr<bool> NcclSession::StartSends(absl::Time now) {
  bool any = false;
  while (true) {
    if (!sending_.has_value()) {
      if (!TakeFrameToSend()) return any;
      RETURN_IF_ERROR(Announce(v1::NcclAnnouncement::FRAME, *sending_));
      any = true;
    }
    while (sending_->started < sending_->bytes) {
      if (!out_->MayStart()) return any;
      const size_t bytes = std::min(terms_.frame_bytes, sending_->bytes - sending_->started);
      RETURN_IF_ERROR(
          out_->Send(absl::MakeConstSpan(sending_->tensor.get() + sending_->started, bytes), now));
      sending_->started += bytes;
      any = true;
    }
    sending_.reset();
  }
}

bool NcclSession::TakeFrameToSend() {
  absl::MutexLock lock(&mutex_);
  if (!is_ready_ || outgoing_.empty()) return false;
  const uint64_t cost = CostOf(outgoing_.front().header.size(), outgoing_.front().bytes);
  if (sent_ + cost - peer_taken_ > limits::kNcclWindowBytes) return false;  // until it takes more
  sent_ += cost;
  sending_ = std::move(outgoing_.front());
  outgoing_.pop_front();
  return true;
}

absl::Status NcclSession::Announce(v1::NcclAnnouncement::Kind kind, const Frame& frame) {
  v1::NcclAnnouncement announcement;
  announcement.set_kind(kind);
  announcement.set_header(frame.header);
  announcement.set_tensor_bytes(frame.bytes);
  told_taken_ = taken_.load(std::memory_order_relaxed);
  announcement.set_taken_bytes(told_taken_);
  return headers_->Send(announcement, {});
}

absl::Status NcclSession::SendCredit() {
  const uint64_t taken = taken_.load(std::memory_order_relaxed);
  if (taken - told_taken_ < limits::kNcclWindowBytes / 4) return absl::OkStatus();
  return Announce(v1::NcclAnnouncement::CREDIT, Frame());
}

absl::Status NcclSession::Deliver() {
  bool any = false;
  while (!incoming_.empty() && incoming_.front().done == incoming_.front().bytes) {
    Frame frame = std::move(incoming_.front());
    incoming_.pop_front();
    if (frame.kind == v1::NcclAnnouncement::HELLO) {
      RETURN_IF_ERROR(OnHello(frame));
      continue;
    }
    RETURN_IF_ERROR(Decode(&frame));
    absl::MutexLock lock(&mutex_);
    ready_.push_back(std::move(frame));
    any = true;
  }
  if (any) {
    absl::MutexLock lock(&mutex_);
    if (user_bell_ != nullptr) user_bell_->Ring();
  }
  return absl::OkStatus();
}

absl::Status NcclSession::OnHello(const Frame& frame) {
  uint64_t hello = 0;
  std::memcpy(&hello, frame.tensor.get(), sizeof(hello));
  if (hello != terms_.hello) {
    return absl::DataLossError("NCCL carries other bytes than those that were sent");
  }
  is_ready_ = true;
  if (terms_.rank == 1) {
    Hello();
    bell_->Ring();  // not to sleep before it is sent
  }
  Ready(absl::OkStatus());
  return absl::OkStatus();
}

absl::Status NcclSession::Decode(Frame* frame) {
  if (terms_.rank == 0 || !terms_.fp8_dispatches || frame->bytes == 0) return absl::OkStatus();
  const size_t bytes_per_row = Fp8RowsBytes(1, terms_.hidden_size);
  if (frame->bytes % bytes_per_row != 0) {
    return BrokenProtocol(
        "tensor_bytes", frame->bytes,
        absl::StrCat("a multiple of ", bytes_per_row, ", the bytes of an FP8 row"));
  }
  const size_t num_rows = frame->bytes / bytes_per_row;
  frame->bytes = num_rows * static_cast<size_t>(terms_.hidden_size) * sizeof(BFloat16);
  std::shared_ptr<uint8_t> rows = transport_->pool().Take(frame->bytes);
  DecodeFp8Rows(frame->tensor.get(), num_rows, terms_.hidden_size,
                reinterpret_cast<BFloat16*>(rows.get()));
  frame->tensor = std::move(rows);
  return absl::OkStatus();
}

}  // namespace conclave
