#pragma once

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "expert_shard/forward_stream.h"
#include "expert_shard/token_batcher.h"
#include "proto/conclave/v1/expert_shard.grpc.pb.h"
#include "rpc/frame_link.h"

namespace conclave {

// One worker's dispatches through shared memory: what ForwardStream is for gRPC. Frames are taken
// and answered by the batcher's thread alone, which sleeps at the bell that the worker rings.
class SharedDispatchSource final : public DispatchSource,
                                   public std::enable_shared_from_this<SharedDispatchSource> {
 public:
  // `on_end` is called once, by the batcher's thread: OK after a drain, else why the worker's
  // frames can no longer be read.
  SharedDispatchSource(const ShardParts* parts, std::unique_ptr<FrameLink> link,
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

// The OpenSharedMemory call that such a source lives as long as. It lives until gRPC has let go of
// it.
class SharedMemoryStream
    : public grpc::ServerBidiReactor<v1::SharedMemoryOffer, v1::SharedMemoryAnswer>,
      public std::enable_shared_from_this<SharedMemoryStream> {
 public:
  // `parts` outlives the stream; `on_done` is called once gRPC has let go of the stream.
  static std::shared_ptr<SharedMemoryStream> Start(const ShardParts* parts,
                                                   absl::AnyInvocable<void()> on_done);

  // Refuses further dispatches with Unavailable and ends once the accepted ones are answered.
  void Drain();

 private:
  SharedMemoryStream(const ShardParts* parts, absl::AnyInvocable<void()> on_done);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // Maps what is offered and lets the batcher read from it.
  absl::Status Accept();
  // Once: the first reason counts.
  void End(const absl::Status& status);
  void FinishIfTime();

  const ShardParts* const parts_;
  absl::AnyInvocable<void()> on_done_;
  std::shared_ptr<SharedMemoryStream> self_;  // gRPC's reference, dropped in OnDone
  v1::SharedMemoryOffer offer_;
  v1::SharedMemoryAnswer answer_;

  absl::Mutex mutex_;
  std::shared_ptr<SharedDispatchSource> source_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace conclave
