#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/limits.h"
#include "proto/conclave/v1/expert_shard.pb.h"
#include "rpc/buffer_pool.h"
#include "rpc/frame_link.h"
#include "rpc/nccl_transport.h"
#include "worker/dispatch_stream.h"
#include "worker/exchange_inbox.h"
#include "worker/exchange_metrics.h"
#include "worker/link_call.h"

namespace conclave {

// What a connection knows about its shard now. Frames go by one of two ways: the gRPC stream, which
// is there while the shard is up, or a link, if one was agreed on.
struct ShardView {
  bool up = false;
  uint64_t stream_id = 0;           // of the stream, while up; no two ways have the same
  std::shared_ptr<FrameLink> link;  // null: by the stream; used by the engine's thread alone
  uint64_t link_id = 0;             // while there is a link
  Transport link_transport = Transport::kSharedMemory;
  uint64_t placement_epoch = 0;
  std::vector<int> experts;  // while up; rising
  absl::Status reason;       // why it is not up
  bool wrong_model = false;  // that is why
  bool is_own = false;       // that is why: it is this process

  Transport transport() const { return link != nullptr ? link_transport : Transport::kGrpc; }
  uint64_t path_id() const { return link != nullptr ? link_id : stream_id; }
  bool HasPath(uint64_t id) const {
    return up && (stream_id == id || (link != nullptr && link_id == id));
  }
};

// One shard: a channel, what Describe said, one open stream, and the best link that both want. A
// thread asks and opens again, with a growing pause, whenever the stream has ended. A link through
// shared memory that ends alone is not made again while the stream goes on; one over NCCL is tried
// again after a growing pause, unless the shard refused it, and frames go by the next best way
// until then. Every change of the view is told to the inbox after it happened.
class ShardConnection {
 public:
  struct Options {
    int shard_idx = 0;
    std::string target;
    std::string fingerprint;   // of the model a shard must have loaded
    std::string weight_dtype;  // of this worker, to say what differs
    // Of the shard in this process, 0 if there is none: who describes itself so gets no stream.
    uint64_t own_placement_epoch = 0;
    int num_experts = 0;
    bool shared_memory = true;  // try it
    // Try it with this; null: do not. Borrowed; it outlives the connection.
    NcclTransport* nccl = nullptr;
    bool nccl_fp8_dispatches = false;
    int hidden_size = 0;
    // Until NCCL is tried again after it failed, twice as long each time up to 16 times this.
    absl::Duration link_retry = limits::kLinkRetryPause;
    // Called by the connection's thread when the shard does not answer; must not block.
    std::function<void()> on_unreachable = [] {};
  };

  // Both are borrowed; `pool` is for frames of the link.
  ShardConnection(Options options, ExchangeInbox* inbox, BufferPool* pool);
  ~ShardConnection();  // ends stream and link
  ShardConnection(const ShardConnection&) = delete;
  ShardConnection& operator=(const ShardConnection&) = delete;

  const std::string& target() const { return options_.target; }
  ShardView view() const;  // any thread

  // Queues a frame on that stream. False if it is not the open one any more.
  bool Send(uint64_t stream_id, grpc::ByteBuffer frame);

  // Gives the shard up, if that is still a way to it: not up from now on, until Describe has been
  // answered again.
  void Reset(uint64_t path_id, const absl::Status& reason);

  // Gives the link up, if it is still the one: by the next best way from now on.
  void DropLink(uint64_t link_id, const absl::Status& reason);

  // A request that the next dispatch will name to the shard; any thread.
  void Announce(const v1::RequestTag& request);
  std::vector<v1::RequestTag> TakeAnnounced();

  std::atomic<uint64_t> outstanding{0};  // dispatches that are not fully answered
  std::atomic<uint64_t> rows_sent{0};
  std::atomic<uint64_t> retries{0};  // dispatches of this shard that were sent again, to any

 private:
  // A kind of link that may be opened, best first.
  struct LinkKind {
    Transport transport;
    absl::Duration first_pause;  // after a failure
    absl::Duration next_pause;
    absl::Time not_before = absl::InfinitePast();
  };
  // A link that is in use or being opened.
  struct Link {
    uint64_t id = 0;  // 0: there is none
    Transport transport = Transport::kSharedMemory;
    std::shared_ptr<LinkCall> call;  // null until it was started
    absl::Time opened = absl::InfiniteFuture();
  };

  void ThreadMain();
  absl::StatusOr<v1::ShardDescription> Describe();
  // Not up, and nothing to wait for.
  void SetOwn();
  bool IsOwn(const v1::ShardDescription& description) const;
  absl::Status Check(const v1::ShardDescription& description) const;
  void OpenStream(const v1::ShardDescription& description);
  void OnStreamEnd(uint64_t stream_id, const absl::Status& reason);
  // Opens links until the stream ends or a stop. Blocks.
  void TendLinks();
  absl::StatusOr<std::shared_ptr<LinkCall>> StartLink(Transport transport, LinkCall::Events events);
  void OnLinkOpen(uint64_t id, std::shared_ptr<FrameLink> link);
  void OnLinkEnd(uint64_t id, const absl::Status& reason);
  // The calls of all links, to be cancelled without the lock.
  using LinkCalls = std::vector<std::shared_ptr<LinkCall>>;
  LinkCalls SetDown(const absl::Status& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  LinkCalls TakeLinks() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The best kind of link to open now, better than the one in use; or none, and when to look again.
  LinkKind* NextLink(absl::Time* look_again) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LinkFailed(const Link& link, const absl::Status& reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool DownOrStopping() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !view_.up;
  }
  bool LinksChanged() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return links_changed_ || DownOrStopping();
  }

  const Options options_;
  ExchangeInbox* const inbox_;
  BufferPool* const pool_;
  const std::shared_ptr<grpc::Channel> channel_;

  mutable absl::Mutex mutex_;
  ShardView view_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<DispatchStream> stream_ ABSL_GUARDED_BY(mutex_);  // null unless up
  std::vector<LinkKind> link_kinds_ ABSL_GUARDED_BY(mutex_);
  Link link_ ABSL_GUARDED_BY(mutex_);     // of view_.link
  Link opening_ ABSL_GUARDED_BY(mutex_);  // will take its place
  bool links_changed_ ABSL_GUARDED_BY(mutex_) = false;
  int open_calls_ ABSL_GUARDED_BY(mutex_) = 0;  // those whose on_end is still to come
  std::vector<v1::RequestTag> announced_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* describing_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace conclave
