#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/conclave/v1/expert_shard.pb.h"
#include "worker/dispatch_stream.h"
#include "worker/exchange_inbox.h"

namespace conclave {

// What a connection knows about its shard now.
struct ShardView {
  bool up = false;
  uint64_t stream_id = 0;  // of the open stream, while up; no two streams have the same
  uint64_t placement_epoch = 0;
  std::vector<int> experts;  // while up; rising
  absl::Status reason;       // why it is not up
  bool wrong_model = false;  // that is why
};

// One shard: a channel, what Describe said, and one open stream. A thread asks and opens again,
// with a growing pause, whenever the stream has ended. Every change of the view is told to the
// inbox after it happened.
class ShardConnection {
 public:
  struct Options {
    int shard_idx = 0;
    std::string target;
    std::string fingerprint;   // of the model a shard must have loaded
    std::string weight_dtype;  // of this worker, to say what differs
    int num_experts = 0;
  };

  ShardConnection(Options options, ExchangeInbox* inbox);  // `inbox` is borrowed
  ~ShardConnection();                                      // ends the stream
  ShardConnection(const ShardConnection&) = delete;
  ShardConnection& operator=(const ShardConnection&) = delete;

  const std::string& target() const { return options_.target; }
  ShardView view() const;  // any thread

  // Queues a frame on that stream. False if it is not the open one any more.
  bool Send(uint64_t stream_id, grpc::ByteBuffer frame);

  // Gives the stream up, if it is still the open one: not up from now on, until Describe has been
  // answered again.
  void Reset(uint64_t stream_id, const absl::Status& reason);

  std::atomic<uint64_t> rows_sent{0};
  std::atomic<uint64_t> retries{0};  // dispatches of this shard that were sent again, to any

 private:
  void ThreadMain();
  absl::StatusOr<v1::ShardDescription> Describe();
  absl::Status Check(const v1::ShardDescription& description) const;
  void OpenStream(const v1::ShardDescription& description);
  void OnStreamEnd(uint64_t stream_id, const absl::Status& reason);
  void SetDown(const absl::Status& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool DownOrStopping() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !view_.up;
  }

  const Options options_;
  ExchangeInbox* const inbox_;
  const std::shared_ptr<grpc::Channel> channel_;

  mutable absl::Mutex mutex_;
  ShardView view_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<DispatchStream> stream_ ABSL_GUARDED_BY(mutex_);  // null unless up
  int open_streams_ ABSL_GUARDED_BY(mutex_) = 0;  // those whose on_end is still to come
  uint64_t last_stream_id_ ABSL_GUARDED_BY(mutex_) = 0;
  grpc::ClientContext* describing_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace conclave
