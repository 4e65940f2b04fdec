#include "router/worker_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"

namespace conclave {

// One Describe in flight.
struct WorkerPool::DescribeCall {
  grpc::ClientContext context;
  v1::DescribeWorkerRequest request;
  v1::WorkerDescription response;
};

WorkerLease::~WorkerLease() { pool_->Release(worker_, background_); }
void WorkerLease::ReportFailure(const absl::Status& status) {
  pool_->ReportFailure(worker_, acquired_, status);
}
void WorkerLease::ReportSuccess() {
  pool_->ReportSuccess(worker_, std::exchange(background_, true));
}

WorkerPool::WorkerPool(WorkerPoolOptions options, v1::ModelInfo model, RouterMetrics* metrics)
    : options_(std::move(options)),
      model_(std::move(model)),
      metrics_(metrics),
      prefixes_(limits::kMaxPrefixMapChunks),
      watcher_(
          {.targets = options_.targets,
           .resolver = options_.resolver,
           .refresh = options_.name_refresh,
           .refresh_after_loss = std::min(limits::kNameRefreshAfterLoss, options_.name_refresh)}) {
  watcher_.Start([this](const PeerWatcher::Found& found) { OnPeers(found); });
}

WorkerPool::~WorkerPool() {
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  for (DescribeCall* call : calls_) call->context.TryCancel();
  mutex_.Await(absl::Condition(this, &WorkerPool::Idle));
}

bool WorkerPool::Idle() const {
  return calls_.empty() && std::all_of(workers_.begin(), workers_.end(), [](const Worker& worker) {
           return worker.inflight == 0 && worker.background == 0;
         });
}

// ---- who there is ----

void WorkerPool::OnPeers(const PeerWatcher::Found& found) {
  std::vector<std::unique_ptr<v1::Worker::Stub>> gone;  // their channels close without the lock
  absl::MutexLock lock(&mutex_);
  if (stopping_) return;
  absl::flat_hash_set<std::string> missing;
  for (const Peer& peer : found.peers) missing.insert(peer.address);
  for (Worker& worker : workers_) {
    if (worker.stub == nullptr) continue;
    const bool leaving = missing.erase(worker.target) == 0;
    if (leaving != worker.leaving) {
      LOG_INFO("worker {} {}", worker.target, leaving ? "has left its name" : "is back");
      worker.leaving = leaving;
      worker.rests_until = absl::InfinitePast();
      SetUp(worker, false, leaving ? "it has left its name" : "not asked yet");
      if (!leaving && !worker.polling) {
        SchedulePoll(static_cast<int>(&worker - workers_.data()), absl::Now());
      }
    }
    const bool in_use = worker.inflight > 0 || worker.background > 0 || worker.polling;
    if (!leaving || in_use) continue;
    timers_.Cancel(worker.poll_timer);
    gone.push_back(std::move(worker.stub));
    worker = Worker();
  }
  for (const Peer& peer : found.peers) {
    if (missing.erase(peer.address) > 0) Join(peer.address);
  }
  unresolved_.clear();
  for (size_t i = 0; i < found.errors.size(); ++i) {
    if (found.errors[i].ok()) continue;
    unresolved_.emplace_back(options_.targets[i], std::string(found.errors[i].message()));
  }
  metrics_->workers().Set(static_cast<double>(found.peers.size() + unresolved_.size()));
}

void WorkerPool::Join(const std::string& address) {
  int idx = 0;
  while (idx < num_slots() && workers_[idx].stub != nullptr) ++idx;
  if (idx == num_slots()) workers_.emplace_back();
  workers_[idx].target = address;
  workers_[idx].stub = v1::Worker::NewStub(MakeChannel(address));
  SchedulePoll(idx, absl::Now());
}

int WorkerPool::num_workers() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(unresolved_.size() +
                          std::count_if(workers_.begin(), workers_.end(), [](const Worker& worker) {
                            return worker.stub != nullptr && !worker.leaving;
                          }));
}

// ---- choosing ----

bool WorkerPool::CanUse(int worker, const Wanted& wanted) const {
  if (!workers_[worker].up || wanted.not_these.contains(worker)) return false;
  return wanted.fingerprint.empty() ||
         wanted.fingerprint == workers_[worker].description.model().fingerprint();
}

int64_t WorkerPool::LoadOf(const Worker& worker) const {
  // What the worker reported holds the requests that were ours then; the rest is other routers'.
  const int64_t reported = int64_t{worker.description.running()} + worker.description.waiting();
  return worker.inflight + std::max<int64_t>(0, reported - worker.inflight_at_poll);
}

std::vector<int64_t> WorkerPool::CachedTokens(const Wanted& wanted) const {
  std::vector<int64_t> cached = prefixes_.CommonTokens(wanted.prefix, num_slots());
  for (int i = 0; i < num_slots(); ++i) {
    if (!workers_[i].description.prefix_cache()) cached[i] = 0;
  }
  return cached;
}

int WorkerPool::FindBest(const Wanted& wanted, const std::vector<int64_t>& cached) const {
  int best = -1;
  int64_t best_cost = 0;
  for (int i = 0; i < num_slots(); ++i) {
    if (!CanUse(i, wanted)) continue;
    const Worker& worker = workers_[i];
    const int64_t cost = LoadOf(worker) * options_.tokens_per_request - cached[i];
    const bool better = best < 0 || cost < best_cost ||
                        (cost == best_cost && worker.last_used < workers_[best].last_used);
    if (!better) continue;
    best = i;
    best_cost = cost;
  }
  return best;
}

std::unique_ptr<WorkerLease> WorkerPool::Acquire(const Wanted& wanted) {
  absl::MutexLock lock(&mutex_);
  if (stopping_) return nullptr;
  const std::vector<int64_t> cached = CachedTokens(wanted);
  const int best = FindBest(wanted, cached);
  if (best < 0) return nullptr;
  const int64_t most = *std::max_element(cached.begin(), cached.end());
  metrics_->CountPrefixRoute(most == 0              ? PrefixRoute::kUnknown
                             : cached[best] == most ? PrefixRoute::kCached
                                                    : PrefixRoute::kBalanced);
  prefixes_.Record(wanted.prefix, best);
  Worker& worker = workers_[best];
  ++worker.inflight;
  worker.last_used = ++ticks_;
  return std::make_unique<WorkerLease>(this, best, worker.stub.get(),
                                       worker.description.model().fingerprint());
}

std::unique_ptr<WorkerLease> WorkerPool::AcquireIdle(int worker_idx, const PrefixKeys& prefix) {
  absl::MutexLock lock(&mutex_);
  if (stopping_ || worker_idx >= num_slots()) return nullptr;
  Worker& worker = workers_[worker_idx];
  const bool idle = worker.inflight == 0 && worker.description.waiting() == 0;
  if (!worker.up || !idle || !worker.description.prefix_cache()) return nullptr;
  if (worker.background >= limits::kMaxBackgroundRequests) return nullptr;
  prefixes_.Record(prefix, worker_idx);
  ++worker.background;
  return std::make_unique<WorkerLease>(this, worker_idx, worker.stub.get(),
                                       worker.description.model().fingerprint(),
                                       /*background=*/true);
}

void WorkerPool::Release(int worker, bool background) {
  absl::MutexLock lock(&mutex_);
  --(background ? workers_[worker].background : workers_[worker].inflight);
}

// ---- waiting ----

WorkerPool::WaitId WorkerPool::Wait(const Wanted& wanted, absl::Time deadline,
                                    absl::AnyInvocable<void()> callback) {
  absl::MutexLock lock(&mutex_);
  const WaitId id = next_wait_++;
  // A worker that came up since the caller looked would wake nobody again.
  bool any = false;
  for (int i = 0; i < num_slots(); ++i) any |= CanUse(i, wanted);
  const absl::Time when = any ? absl::Now() : deadline;
  const Timers::Id timer = timers_.RunAt(when, [this, id] { FireWaiter(id); });
  waiters_.emplace(id, Waiter{std::move(callback), timer});
  return id;
}

void WorkerPool::FireWaiter(WaitId id) {
  absl::AnyInvocable<void()> callback;
  {
    absl::MutexLock lock(&mutex_);
    const auto waiter = waiters_.find(id);
    if (waiter == waiters_.end()) return;
    callback = std::move(waiter->second.callback);
    waiters_.erase(waiter);
  }
  callback();
}

void WorkerPool::CancelWait(WaitId id) {
  absl::AnyInvocable<void()> dropped;  // destroyed after the lock: it owns a request
  absl::MutexLock lock(&mutex_);
  const auto waiter = waiters_.find(id);
  if (waiter == waiters_.end()) return;
  timers_.Cancel(waiter->second.timer);
  dropped = std::move(waiter->second.callback);
  waiters_.erase(waiter);
}

void WorkerPool::OnFirstReady(absl::AnyInvocable<void()> callback) {
  {
    absl::MutexLock lock(&mutex_);
    const bool ready = std::any_of(workers_.begin(), workers_.end(),
                                   [](const Worker& worker) { return worker.up; });
    if (!ready) {
      on_first_ready_ = std::move(callback);
      return;
    }
  }
  callback();
}

void WorkerPool::OnQueue(absl::AnyInvocable<void(double)> callback) {
  absl::MutexLock lock(&mutex_);
  on_queue_ = std::move(callback);
}

double WorkerPool::WaitingPerWorker() const {
  // Requests that no worker took wait here.
  double waiting = metrics_->waiting().Value();
  int num_up = 0;
  for (const Worker& worker : workers_) {
    if (!worker.up) continue;
    ++num_up;
    waiting += worker.description.waiting();
  }
  return waiting / std::max(1, num_up);
}

// ---- asking ----

void WorkerPool::SchedulePoll(int worker_idx, absl::Time when) {
  Worker& worker = workers_[worker_idx];
  timers_.Cancel(worker.poll_timer);
  worker.poll_timer = timers_.RunAt(when, [this, worker_idx] { Poll(worker_idx); });
}

void WorkerPool::Poll(int worker_idx) {
  auto owned_call = std::make_unique<DescribeCall>();
  DescribeCall* call = owned_call.get();
  const absl::Time asked = absl::Now();
  v1::Worker::Stub* stub = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    Worker& worker = workers_[worker_idx];
    if (stopping_ || worker.polling || worker.stub == nullptr || worker.leaving) return;
    worker.polling = true;
    worker.inflight_at_poll = worker.inflight;
    stub = worker.stub.get();
    calls_.insert(owned_call.release());
  }
  call->context.set_deadline(absl::ToChronoTime(asked + options_.describe_deadline));
  stub->async()->Describe(&call->context, &call->request, &call->response,
                          [this, worker_idx, asked, call](const grpc::Status& status) {
                            OnDescribed(worker_idx, asked, FromGrpcStatus(status), call->response);
                            absl::MutexLock lock(&mutex_);
                            calls_.erase(call);
                            delete call;
                          });
}

std::string WorkerPool::WhyUnusable(const Worker& worker) const {
  if (!worker.description.ready()) {
    const std::string& reason = worker.description.reason();
    return reason.empty() ? "not ready" : reason;
  }
  if (absl::Now() < worker.rests_until) {
    return absl::StrCat("rests after ", worker.failures, " broken streams");
  }
  return WhyOtherModel(worker);
}

std::string WorkerPool::WhyOtherModel(const Worker& worker) const {
  const v1::ModelInfo& found = worker.description.model();
  const auto differs = [](absl::string_view what, auto value, auto wanted) {
    return absl::StrCat("loaded another model: ", what, " is ", value, ", want ", wanted);
  };
  if (found.num_hidden_layers() != model_.num_hidden_layers()) {
    return differs("num_hidden_layers", found.num_hidden_layers(), model_.num_hidden_layers());
  }
  if (found.hidden_size() != model_.hidden_size()) {
    return differs("hidden_size", found.hidden_size(), model_.hidden_size());
  }
  if (found.num_experts() != model_.num_experts()) {
    return differs("num_experts", found.num_experts(), model_.num_experts());
  }
  if (found.vocab_size() != model_.vocab_size()) {
    return differs("vocab_size", found.vocab_size(), model_.vocab_size());
  }
  // Two checkpoints of one shape must not answer one request; those that are up decide.
  for (const Worker& other : workers_) {
    if (&other != &worker && other.up && found.fingerprint() != fingerprint_) {
      return differs("fingerprint", found.fingerprint(), fingerprint_);
    }
  }
  return "";
}

void WorkerPool::OnDescribed(int worker_idx, absl::Time asked, const absl::Status& status,
                             const v1::WorkerDescription& description) {
  absl::flat_hash_map<WaitId, Waiter> woken;
  absl::AnyInvocable<void()> first_ready;
  {
    absl::MutexLock lock(&mutex_);
    Worker& worker = workers_[worker_idx];
    worker.polling = false;
    if (stopping_ || worker.leaving) return;
    if (!status.ok()) watcher_.LookAgain();
    if (asked <= worker.last_failure) {  // this answer is older than what we know
      SchedulePoll(worker_idx, absl::Now());
      return;
    }
    const bool was_up = worker.up;
    std::string error = std::string(status.message());
    if (status.ok()) {
      worker.description = description;
      error = WhyUnusable(worker);
    } else {  // what it said of itself and its shards is of before
      worker.description.set_ready(false);
      worker.description.clear_reason();
      worker.description.clear_shards();
    }
    worker.other_model = status.ok() && description.ready() && !WhyOtherModel(worker).empty();
    SetUp(worker, status.ok() && error.empty(), error);
    if (on_queue_ != nullptr) on_queue_(WaitingPerWorker());
    if (worker.up && !was_up) {
      LOG_INFO("worker {} is up", worker.target);
      woken.swap(waiters_);
      first_ready = std::exchange(on_first_ready_, nullptr);
    } else if (!worker.up && was_up) {
      LOG_WARNING("worker {} is down: {}", worker.target, worker.error);
    }
    SchedulePoll(worker_idx, absl::Now() + options_.poll_interval);
  }
  if (first_ready != nullptr) first_ready();
  for (auto& [id, waiter] : woken) {
    timers_.Cancel(waiter.timer);
    waiter.callback();
  }
}

void WorkerPool::SetUp(Worker& worker, bool up, std::string error) {
  // Down may mean gone, and what comes back then has an empty cache.
  if (worker.up && !up) prefixes_.Forget(static_cast<int>(&worker - workers_.data()));
  worker.up = up;
  worker.error = std::move(error);
  if (up) {
    fingerprint_ = worker.description.model().fingerprint();
    weight_dtype_ = worker.description.model().weight_dtype();
  }
  metrics_->workers_up().Set(std::count_if(workers_.begin(), workers_.end(),
                                           [](const Worker& other) { return other.up; }));
  metrics_->workers_with_other_model().Set(std::count_if(
      workers_.begin(), workers_.end(), [](const Worker& other) { return other.other_model; }));
}

// ---- what requests saw ----

void WorkerPool::ReportFailure(int worker_idx, absl::Time acquired, const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  Worker& worker = workers_[worker_idx];
  // A worker that dies breaks all its streams: that is one failure, not as many as it had.
  if (acquired <= worker.last_failure) return;
  LOG_WARNING("worker {} lost a stream: {}", worker.target, status.ToString());
  ++worker.failures;
  worker.last_failure = absl::Now();
  if (worker.failures >= options_.failures_to_open) {
    const int doublings = std::min(worker.failures - options_.failures_to_open, 16);
    worker.rests_until =
        worker.last_failure + std::min(options_.max_rest, options_.min_rest * (1 << doublings));
  }
  SetUp(worker, false, std::string(status.message()));
  if (stopping_ || worker.leaving) return;
  watcher_.LookAgain();
  if (!worker.polling) SchedulePoll(worker_idx, absl::Now());
}

void WorkerPool::ReportSuccess(int worker_idx, bool background) {
  absl::MutexLock lock(&mutex_);
  Worker& worker = workers_[worker_idx];
  worker.failures = 0;
  if (background) return;
  // Not when the lease is back: the conversation's next turn may be quicker.
  --worker.inflight;
  ++worker.background;
}

// ---- looking ----

bool WorkerPool::AnyReady() const {
  absl::MutexLock lock(&mutex_);
  return std::any_of(workers_.begin(), workers_.end(),
                     [](const Worker& worker) { return worker.up; });
}

int64_t WorkerPool::max_context() const {
  absl::MutexLock lock(&mutex_);
  int64_t least = 0;
  for (const Worker& worker : workers_) {
    const int64_t context = worker.description.max_context();
    if (worker.up && context > 0 && (least == 0 || context < least)) least = context;
  }
  return least;
}

std::string WorkerPool::fingerprint() const {
  absl::MutexLock lock(&mutex_);
  return fingerprint_;
}

std::string WorkerPool::weight_dtype() const {
  absl::MutexLock lock(&mutex_);
  return weight_dtype_;
}

std::vector<v1::ClusterStatus::WorkerStatus> WorkerPool::Snapshot() const {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::ClusterStatus::WorkerStatus> statuses;
  for (const Worker& worker : workers_) {
    if (worker.stub == nullptr || (worker.leaving && worker.inflight == 0)) continue;
    v1::ClusterStatus::WorkerStatus& status = statuses.emplace_back();
    status.set_target(worker.target);
    status.set_up(worker.up);
    status.set_error(worker.error);
    *status.mutable_description() = worker.description;
    status.set_inflight(worker.inflight);
  }
  for (const auto& [target, error] : unresolved_) {
    v1::ClusterStatus::WorkerStatus& status = statuses.emplace_back();
    status.set_target(target);
    status.set_error(error);
  }
  return statuses;
}

}  // namespace conclave
