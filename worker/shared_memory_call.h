#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "proto/conclave/v1/expert_shard.grpc.pb.h"
#include "rpc/doorbell.h"
#include "rpc/frame_link.h"

namespace conclave {

// One OpenSharedMemory call to one shard: offers memory, and holds the call open while frames
// travel through it. Lives until gRPC has let go of it.
class SharedMemoryCall
    : public grpc::ClientBidiReactor<v1::SharedMemoryOffer, v1::SharedMemoryAnswer> {
 public:
  // Both are called from gRPC's threads and must not block.
  struct Events {
    // At most once: the shard has mapped the memory.
    std::function<void(std::shared_ptr<FrameLink>)> on_open;
    // Once, last: why there is no such way, or no more; never OK.
    std::function<void(absl::Status)> on_end;
  };

  // `bell`, which is shared, wakes the thread that will use the link; `pool` serves the link. Both
  // are borrowed and outlive it. An error is one of the system's: it has no memory to share.
  static absl::StatusOr<std::shared_ptr<SharedMemoryCall>> Start(
      const std::shared_ptr<grpc::Channel>& channel, const Doorbell& bell, BufferPool* pool,
      Events events);

  // Ends the call with `reason`, without waiting for anything. Any thread.
  void Cancel(absl::Status reason);

 private:
  SharedMemoryCall(const std::shared_ptr<grpc::Channel>& channel, SharedMemory rings,
                   BufferPool* pool, Events events);

  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;
  // What the shard's answer makes of the offer. FailedPrecondition: it has other memory than ours.
  absl::StatusOr<std::shared_ptr<FrameLink>> MakeLink();

  const std::unique_ptr<v1::ExpertShard::Stub> stub_;
  BufferPool* const pool_;
  const Events events_;
  grpc::ClientContext context_;
  v1::SharedMemoryOffer offer_;
  v1::SharedMemoryAnswer answer_;
  SharedMemory rings_;                      // until the link has it
  bool answered_ = false;                   // gRPC's reactions only
  std::shared_ptr<SharedMemoryCall> self_;  // gRPC's reference, dropped in OnDone

  absl::Mutex mutex_;
  absl::Status reason_ ABSL_GUARDED_BY(mutex_);  // of Cancel
};

}  // namespace conclave
