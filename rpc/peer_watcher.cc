#include "rpc/peer_watcher.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_join.h"
#include "common/log.h"

namespace conclave {

PeerWatcher::PeerWatcher(Options options)
    : options_(std::move(options)),
      resolver_(options_.resolver != nullptr ? options_.resolver : MakeDnsResolver()),
      addresses_(options_.targets.size()),
      errors_(options_.targets.size()),
      left_out_(options_.targets.size()) {
  for (size_t i = 0; i < options_.targets.size(); ++i) {
    if (IsDnsTarget(options_.targets[i])) {
      errors_[i] = absl::UnavailableError("the name is not resolved yet");
    } else {
      addresses_[i] = {options_.targets[i]};
    }
  }
}

void PeerWatcher::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (!thread_.joinable()) return;
  resolver_->Stop();
  thread_.join();
}

void PeerWatcher::Start(std::function<void(const Found&)> on_found) {
  on_found_ = std::move(on_found);
  on_found_(List());
  if (std::any_of(options_.targets.begin(), options_.targets.end(), IsDnsTarget)) {
    thread_ = std::thread([this] { ThreadMain(); });
  }
}

void PeerWatcher::LookAgain() {
  absl::MutexLock lock(&mutex_);
  look_again_ = true;
}

PeerWatcher::Found PeerWatcher::List() const {
  Found found;
  found.errors = errors_;
  absl::flat_hash_set<std::string> seen;
  for (size_t i = 0; i < addresses_.size(); ++i) {
    for (const std::string& address : addresses_[i]) {
      if (seen.insert(address).second) found.peers.push_back({address, i});
    }
  }
  return found;
}

void PeerWatcher::Resolve(size_t target_idx) {
  const std::string& target = options_.targets[target_idx];
  absl::StatusOr<std::vector<std::string>> addresses =
      resolver_->Resolve(target, absl::Now() + limits::kResolveDeadline);
  std::vector<std::string>& known = addresses_[target_idx];
  absl::Status& error = errors_[target_idx];
  if (addresses.ok() && !addresses->empty()) {
    Cut(target_idx, *addresses);
    if (*addresses != known) LOG_INFO("{} is {}", target, absl::StrJoin(*addresses, ", "));
    known = *std::move(addresses);
    error = absl::OkStatus();
  } else if (known.empty() && !addresses.ok()) {
    if (addresses.status() != error) LOG_WARNING("{}", addresses.status().ToString());
    error = addresses.status();
  }
}

void PeerWatcher::Cut(size_t target_idx, std::vector<std::string>& addresses) {
  const size_t all = addresses.size();
  const size_t left_out = all - std::min(all, limits::kMaxPeersOfName);
  if (left_out > 0) addresses.resize(limits::kMaxPeersOfName);
  // Once, not every few seconds.
  if (left_out > 0 && left_out != left_out_[target_idx]) {
    LOG_WARNING("{} has {} addresses, and the first {} are used", options_.targets[target_idx], all,
                limits::kMaxPeersOfName);
  }
  left_out_[target_idx] = left_out;
}

void PeerWatcher::ThreadMain() {
  while (true) {
    for (size_t i = 0; i < options_.targets.size(); ++i) {
      if (!IsDnsTarget(options_.targets[i])) continue;
      Resolve(i);
      {
        absl::MutexLock lock(&mutex_);
        if (stopping_) return;
      }
      on_found_(List());
    }
    const bool all_known = std::all_of(errors_.begin(), errors_.end(),
                                       [](const absl::Status& error) { return error.ok(); });
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&stopping_), options_.refresh_after_loss);
    if (all_known) {
      mutex_.AwaitWithTimeout(absl::Condition(this, &PeerWatcher::LookNow),
                              options_.refresh - options_.refresh_after_loss);
    }
    if (stopping_) return;
    look_again_ = false;
  }
}

}  // namespace conclave
