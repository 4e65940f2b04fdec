#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "rpc/nccl_lane.h"
#include "rpc/nccl_link.h"

namespace conclave {

// What an NCCL link and its thread share. It ends when the link has gone or at the first error,
// whichever comes first; what ends it is what the link's calls return from then on.
class NcclSession {
 public:
  NcclSession(NcclTransport* transport, NcclTerms terms, std::unique_ptr<Doorbell> bell,
              std::unique_ptr<FrameLink> headers, Doorbell* user_bell, NcclLink::OnReady on_ready);

  // The link's thread: joins, moves frames, aborts.
  void Main();

  // The link's user.
  absl::Status Send(std::string header, FrameLink::Pieces tensor);
  absl::StatusOr<bool> Poll(int max_frames, FrameLink::OnFrame on_frame);
  size_t num_waiting() const;
  void Stop();  // the user's bell may go

 private:
  struct Frame {
    v1::NcclAnnouncement::Kind kind = v1::NcclAnnouncement::FRAME;
    std::string header;
    std::shared_ptr<uint8_t> tensor;
    size_t bytes = 0;
    size_t started = 0;  // bytes whose transfer was started
    size_t done = 0;     // bytes that were received
  };

  // Below: the link's thread only.
  absl::Status SetUp();
  absl::Status Serve();
  absl::StatusOr<std::vector<std::unique_ptr<NcclBuffer>>> AllocateBuffers() const;
  void Hello();  // is sent
  absl::Status OnAnnouncement(const std::string& header, absl::Span<const uint8_t> tensor);
  absl::Status OnFrameBegins(v1::NcclAnnouncement& announcement);
  absl::StatusOr<bool> PollLanes(absl::Time now);
  absl::StatusOr<bool> StartReceives(absl::Time now);
  absl::StatusOr<bool> StartSends(absl::Time now);
  bool TakeFrameToSend();
  absl::Status Announce(v1::NcclAnnouncement::Kind kind, const Frame& frame);
  absl::Status SendCredit();
  // Hands over what has come as a whole.
  absl::Status Deliver();
  absl::Status OnHello(const Frame& frame);
  absl::Status Decode(Frame* frame);
  void Wait(uint32_t rings, absl::Time last_news);
  void Ready(const absl::Status& status);
  bool Stopping() const;

  NcclTransport* const transport_;
  const NcclTerms terms_;
  const std::unique_ptr<Doorbell> bell_;
  const std::unique_ptr<FrameLink> headers_;
  NcclLink::OnReady on_ready_;  // null once called
  absl::Time set_up_by_;
  bool is_ready_ = false;
  std::unique_ptr<NcclLane> out_;
  std::unique_ptr<NcclLane> in_;
  std::optional<Frame> sending_;
  std::deque<Frame> incoming_;
  // Costs of frames since the start.
  uint64_t sent_ = 0;        // by us
  uint64_t peer_taken_ = 0;  // of these, by the peer
  uint64_t announced_ = 0;   // to us
  uint64_t told_taken_ = 0;  // what the peer knows that we took

  std::atomic<uint64_t> taken_{0};  // by the user

  mutable absl::Mutex mutex_;
  Doorbell* user_bell_ ABSL_GUARDED_BY(mutex_);  // null after Stop
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status ended_ ABSL_GUARDED_BY(mutex_);          // why, once it has
  std::deque<Frame> outgoing_ ABSL_GUARDED_BY(mutex_);  // of the user
  std::deque<Frame> ready_ ABSL_GUARDED_BY(mutex_);     // for the user
};

}  // namespace conclave
