#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "expert_shard/forward_stream.h"
#include "expert_shard/token_batcher.h"
#include "rpc/frame_link.h"

namespace conclave {

// One worker's dispatches through a link: what ForwardStream is for gRPC. Frames are taken
// and answered by the batcher's thread alone, which sleeps at the bell that the link rings.
class LinkDispatchSource final : public DispatchSource,
                                 public std::enable_shared_from_this<LinkDispatchSource> {
 public:
  // `on_end` is called once, by the batcher's thread: OK after a drain, else why the worker's
  // frames can no longer be read.
  LinkDispatchSource(const ShardParts* parts, std::unique_ptr<FrameLink> link,
                     absl::AnyInvocable<void(absl::Status)> on_end);

  uint64_t worker() const { return worker_; }
  void Poll() override;

  // The worker has gone: nothing is read or answered any more. Any thread.
  void Abandon() { abandoned_->store(true); }
  // Refuses further dispatches and ends once the accepted ones are answered. Any thread.
  void Drain() { draining_.store(true); }

 private:
  absl::Status Accept(const std::string& header, absl::Span<const uint8_t> hidden_states);
  void Answer(uint64_t sequence, size_t dispatch_bytes,
              const absl::StatusOr<DispatchResult>& result);
  void End(absl::Status status);

  const ShardParts* const parts_;
  const uint64_t worker_;
  const std::shared_ptr<std::atomic<bool>> abandoned_;
  std::atomic<bool> draining_{false};

  // The batcher's thread only.
  std::unique_ptr<FrameLink> link_;
  absl::AnyInvocable<void(absl::Status)> on_end_;  // empty once called
  absl::Status broken_;                            // why an answer could not be sent
  int unanswered_frames_ = 0;
  size_t unanswered_bytes_ = 0;
};

}  // namespace conclave
