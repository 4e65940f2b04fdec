#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/limits.h"
#include "rpc/name_resolver.h"

namespace conclave {

// One peer behind the targets an operator named.
struct Peer {
  std::string address;    // a gRPC target: one host, not a name of several
  size_t target_idx = 0;  // which of the targets it stands behind
};

// Keeps a list of peers up to date: a target with "dns:" stands for every address of the name, each
// a peer; any other target is one peer, and stays. Names are resolved on a thread of this, every
// `refresh`, and soon when someone says that a peer is lost or while a name has no address yet. An
// answer replaces the one before. No answer, or an empty one, changes nothing: that a name server
// knows nothing is no reason to leave peers that may be well. Of a name, limits::kMaxPeersOfName
// addresses are used, and a warning tells of the rest.
class PeerWatcher {
 public:
  struct Options {
    std::vector<std::string> targets;
    std::shared_ptr<NameResolver> resolver;  // null: MakeDnsResolver()
    absl::Duration refresh = limits::kNameRefresh;
    absl::Duration refresh_after_loss = limits::kNameRefreshAfterLoss;  // no sooner than this
  };
  struct Found {
    std::vector<Peer> peers;           // in the targets' order; no address twice
    std::vector<absl::Status> errors;  // per target: OK, or why no address is known
  };

  explicit PeerWatcher(Options options);
  ~PeerWatcher() { Stop(); }
  PeerWatcher(const PeerWatcher&) = delete;
  PeerWatcher& operator=(const PeerWatcher&) = delete;

  // Once. `on_found` is called before this returns with what needs no name server, and from then
  // on, by the thread, after every answer, also one that changed nothing.
  void Start(std::function<void(const Found&)> on_found);

  // Waits for a callback under way; there is none after it.
  void Stop();

  // A peer does not answer: it may be elsewhere now. Any thread; does not block.
  void LookAgain();

 private:
  void ThreadMain();
  void Resolve(size_t target_idx);
  // To limits::kMaxPeersOfName, saying so when that is news.
  void Cut(size_t target_idx, std::vector<std::string>& addresses);
  Found List() const;
  bool LookNow() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return look_again_ || stopping_; }

  const Options options_;
  const std::shared_ptr<NameResolver> resolver_;
  std::function<void(const Found&)> on_found_;
  // The thread's, once it runs. Per target:
  std::vector<std::vector<std::string>> addresses_;
  std::vector<absl::Status> errors_;
  std::vector<size_t> left_out_;  // addresses past the bound, when last looked at

  absl::Mutex mutex_;
  bool look_again_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // none without names
};

}  // namespace conclave
