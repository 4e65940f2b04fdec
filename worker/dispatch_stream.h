#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/client_callback.h>

#include <deque>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "rpc/expert_frame.h"

namespace conclave {

// One Forward call to one shard: frames go out in order, combines come in as they are ready. Lives
// until gRPC has let go of it.
class DispatchStream : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  // Both are called from gRPC's threads and must not block.
  struct Events {
    // In order. False ends the stream: the shard sends what nobody asked for.
    std::function<bool(CombineFrame)> on_combine;
    // Once, last: why the stream ended, never OK.
    std::function<void(absl::Status)> on_end;
  };

  static std::shared_ptr<DispatchStream> Start(std::shared_ptr<grpc::Channel> channel,
                                               Events events);

  // Queues a frame. False if the stream has ended or is about to. Any thread.
  bool Send(grpc::ByteBuffer frame);

  // Ends the stream with `reason`, without waiting for anything. Any thread.
  void Cancel(absl::Status reason);

 private:
  DispatchStream(std::shared_ptr<grpc::Channel> channel, Events events);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  // No more reads. Send comes from outside gRPC's reactions, for which the call is held until the
  // last write has returned.
  void ReadsEnded();

  const std::shared_ptr<grpc::Channel> channel_;
  const Events events_;
  grpc::ClientContext context_;
  grpc::ByteBuffer incoming_;             // owned by the read in progress
  std::shared_ptr<DispatchStream> self_;  // gRPC's reference, dropped in OnDone

  absl::Mutex mutex_;
  std::deque<grpc::ByteBuffer> outgoing_ ABSL_GUARDED_BY(mutex_);  // front: being written
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;  // no further write is started
  bool reads_ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status reason_ ABSL_GUARDED_BY(mutex_);  // of Cancel
};

}  // namespace conclave
