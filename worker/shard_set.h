#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics.h"
#include "proto/conclave/v1/worker.pb.h"
#include "rpc/buffer_pool.h"
#include "rpc/peer_watcher.h"
#include "worker/exchange_inbox.h"
#include "worker/shard_connection.h"

namespace conclave {

// The shards of a worker as they come and go: one connection to each address behind the targets. A
// shard that has left its name is given nothing new, and its connection is closed once it has
// answered what it was given. A shard is named by a number, which a later one may have when this
// one is gone. Thread-safe.
class ShardSet {
 public:
  // One place, as of a look.
  struct Shard {
    std::shared_ptr<ShardConnection> connection;  // null: the place is free
    ShardView view;
    bool leaving = false;                 // finishes what it has
    prometheus::Counter* rows = nullptr;  // once it was up
  };
  struct Options {
    std::vector<std::string> targets;        // as of PeerWatcher
    std::shared_ptr<NameResolver> resolver;  // null: MakeDnsResolver()
    absl::Duration name_refresh = limits::kNameRefresh;
    ShardConnection::Options connection;  // but its number and target
  };

  // All are borrowed. Starts to resolve and to connect at once.
  ShardSet(Options options, ExchangeInbox* inbox, BufferPool* pool, Metrics* metrics);
  ~ShardSet();  // no look is held any more

  // Every place; a shard's number is its index. Sets the gauges of who is up.
  std::vector<Shard> Look();
  // Why targets without any address have none: "TARGET: why", each.
  std::vector<std::string> Unresolved() const;
  // For Describe: the shards that have not left, and the targets without any. Without this worker's
  // own.
  std::vector<v1::ShardState> States() const;
  // Every shard is told of the request with what it is sent next.
  void Announce(const v1::RequestTag& request);

 private:
  struct Place {
    std::shared_ptr<ShardConnection> connection;
    size_t target_idx = 0;
    size_t nth_of_target = 0;  // with target_idx, the label "shard"
    bool leaving = false;
    prometheus::Gauge* up = nullptr;  // null: nobody misses it
    prometheus::Counter* rows = nullptr;
  };

  void OnPeers(const PeerWatcher::Found& found);
  // Of a shard's metrics: the target's place in the list, and ".N" for another replica behind it. A
  // shard that came back under another address has the label it had.
  static std::string Label(size_t target_idx, size_t nth_of_target);
  void Join(const Peer& peer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Leave(Place& place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Its metrics, by how the shard is.
  void Publish(Place& place, const ShardView& view) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RemoveUpGauge(Place& place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  prometheus::Gauge& UpGauge(const std::string& label);

  const Options options_;
  ExchangeInbox* const inbox_;
  BufferPool* const pool_;
  Metrics* const metrics_;
  PeerWatcher watcher_;  // before the connections, which use it while they live

  mutable absl::Mutex mutex_;
  std::vector<Place> places_ ABSL_GUARDED_BY(mutex_);
  std::vector<absl::Status> errors_ ABSL_GUARDED_BY(mutex_);  // per target
  // Of shards that are gone. Looks of the past may still hold them; closed by the watcher's thread,
  // for that takes a moment that the engine does not have.
  std::vector<std::shared_ptr<ShardConnection>> gone_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace conclave
