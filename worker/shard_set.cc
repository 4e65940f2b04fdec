#include "worker/shard_set.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace conclave {
namespace {

constexpr char kUpMetric[] = "conclave_worker_shard_up";

}  // namespace

ShardSet::ShardSet(Options options, ExchangeInbox* inbox, BufferPool* pool, Metrics* metrics)
    : options_(std::move(options)),
      inbox_(inbox),
      pool_(pool),
      metrics_(metrics),
      watcher_(
          {.targets = options_.targets,
           .resolver = options_.resolver,
           .refresh = options_.name_refresh,
           .refresh_after_loss = std::min(limits::kNameRefreshAfterLoss, options_.name_refresh)}) {
  // There from the start: a target that has no address is a shard that is down.
  for (size_t i = 0; i < options_.targets.size(); ++i) UpGauge(Label(i, 0)).Set(0);
  watcher_.Start([this](const PeerWatcher::Found& found) { OnPeers(found); });
}

ShardSet::~ShardSet() { watcher_.Stop(); }

std::string ShardSet::Label(size_t target_idx, size_t nth_of_target) {
  return nth_of_target == 0 ? absl::StrCat(target_idx)
                            : absl::StrCat(target_idx, ".", nth_of_target);
}

prometheus::Gauge& ShardSet::UpGauge(const std::string& label) {
  return metrics_->Gauge(kUpMetric, "1 while the shard serves this worker", {{"shard", label}});
}

void ShardSet::OnPeers(const PeerWatcher::Found& found) {
  std::vector<std::shared_ptr<ShardConnection>> closed;  // without the lock
  {
    absl::MutexLock lock(&mutex_);
    errors_ = found.errors;
    absl::flat_hash_map<std::string, const Peer*> missing;
    for (const Peer& peer : found.peers) missing.emplace(peer.address, &peer);
    for (Place& place : places_) {
      if (place.connection == nullptr) continue;
      // One that was leaving and is back joins anew, with a label of its own.
      const auto known = place.leaving ? missing.end() : missing.find(place.connection->target());
      if (known != missing.end()) {
        missing.erase(known);
        continue;
      }
      if (!place.leaving) Leave(place);
      if (place.connection->outstanding.load() > 0) continue;
      gone_.push_back(std::move(place.connection));
      place = Place();
    }
    for (const Peer& peer : found.peers) {
      if (missing.erase(peer.address) > 0) Join(peer);
    }
    // No look from now on can find them: who is alone here stays alone.
    const auto in_use = [](const auto& connection) { return connection.use_count() > 1; };
    const auto unused = std::partition(gone_.begin(), gone_.end(), in_use);
    std::move(unused, gone_.end(), std::back_inserter(closed));
    gone_.erase(unused, gone_.end());
  }
  inbox_->NotifyChanged();
}

void ShardSet::Leave(Place& place) {
  LOG_INFO("shard {} has left {}", place.connection->target(), options_.targets[place.target_idx]);
  place.leaving = true;
  // Its target has another address, or it would not be said to have left: nobody misses this one.
  RemoveUpGauge(place);
}

void ShardSet::RemoveUpGauge(Place& place) {
  if (place.up == nullptr) return;
  metrics_->RemoveGauge(kUpMetric, {{"shard", Label(place.target_idx, place.nth_of_target)}});
  place.up = nullptr;
}

void ShardSet::Join(const Peer& peer) {
  // The label that is free among those of its target.
  size_t nth = 0;
  const auto taken = [&](const Place& place) {
    return place.connection != nullptr && !place.leaving && place.target_idx == peer.target_idx &&
           place.nth_of_target == nth;
  };
  while (std::any_of(places_.begin(), places_.end(), taken)) ++nth;
  auto free = std::find_if(places_.begin(), places_.end(),
                           [](const Place& place) { return place.connection == nullptr; });
  if (free == places_.end()) free = places_.insert(places_.end(), Place());
  ShardConnection::Options connection = options_.connection;
  connection.shard_idx = static_cast<int>(free - places_.begin());
  connection.target = peer.address;
  connection.on_unreachable = [this] { watcher_.LookAgain(); };
  const std::string label = Label(peer.target_idx, nth);
  LOG_INFO("shard {} is {}", label, peer.address);
  free->connection = std::make_shared<ShardConnection>(std::move(connection), inbox_, pool_);
  free->target_idx = peer.target_idx;
  free->nth_of_target = nth;
  free->up = &UpGauge(label);
}

void ShardSet::Publish(Place& place, const ShardView& view) {
  if (place.leaving) return;
  if (view.is_own) return RemoveUpGauge(place);  // 0 would be taken for a shard that is down
  const std::string label = Label(place.target_idx, place.nth_of_target);
  if (place.up == nullptr) place.up = &UpGauge(label);
  place.up->Set(view.up ? 1 : 0);
  if (!view.up || place.rows != nullptr) return;
  place.rows =
      &metrics_->Counter("conclave_worker_shard_rows_total",
                         "(row, expert) pairs by where they were computed", {{"shard", label}});
}

std::vector<ShardSet::Shard> ShardSet::Look() {
  absl::MutexLock lock(&mutex_);
  std::vector<Shard> shards;
  for (Place& place : places_) {
    Shard& shard = shards.emplace_back();
    if (place.connection == nullptr) continue;
    const ShardView view = place.connection->view();
    Publish(place, view);
    shard = {place.connection, view, place.leaving, place.rows};
  }
  return shards;
}

std::vector<std::string> ShardSet::Unresolved() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> unresolved;
  for (size_t i = 0; i < errors_.size(); ++i) {
    if (errors_[i].ok()) continue;
    unresolved.push_back(absl::StrCat(options_.targets[i], ": ", errors_[i].message()));
  }
  return unresolved;
}

std::vector<v1::ShardState> ShardSet::States() const {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::ShardState> states;
  for (const Place& place : places_) {
    if (place.connection == nullptr || place.leaving) continue;
    const ShardView view = place.connection->view();
    if (view.is_own) continue;
    v1::ShardState& state = states.emplace_back();
    state.set_target(place.connection->target());
    state.set_up(view.up);
    for (const int expert : view.experts) state.add_expert_ids(expert);
    state.set_rows_sent(place.connection->rows_sent.load());
    state.set_retries(place.connection->retries.load());
    if (view.up) state.set_transport(TransportName(view.transport()));
  }
  for (size_t i = 0; i < errors_.size(); ++i) {
    if (!errors_[i].ok()) states.emplace_back().set_target(options_.targets[i]);
  }
  return states;
}

void ShardSet::Announce(const v1::RequestTag& request) {
  absl::MutexLock lock(&mutex_);
  for (const Place& place : places_) {
    if (place.connection != nullptr) place.connection->Announce(request);
  }
}

}  // namespace conclave
