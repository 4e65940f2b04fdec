#include "expert_shard/token_batcher.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/algorithm/container.h"
#include "common/errors.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

bool Abandoned(const QueuedDispatch& dispatch) {
  return dispatch.abandoned != nullptr && dispatch.abandoned->load(std::memory_order_relaxed);
}

// The rows of all dispatches, one after another; copied only if there are several.
const BFloat16* MergeRows(std::vector<QueuedDispatch>& batch, BufferPool& pool,
                          std::shared_ptr<uint8_t>* merged) {
  if (batch.size() == 1) return batch[0].frame.hidden_states.Rows(pool);
  size_t bytes = 0;
  for (const QueuedDispatch& dispatch : batch) bytes += dispatch.frame.hidden_states.size();
  *merged = pool.Take(bytes);
  uint8_t* out = merged->get();
  for (const QueuedDispatch& dispatch : batch) {
    const TensorBytes& tensor = dispatch.frame.hidden_states;
    tensor.CopyTo(0, tensor.size(), out);
    out += tensor.size();
  }
  return reinterpret_cast<const BFloat16*>(merged->get());
}

}  // namespace

TokenBatcher::TokenBatcher(ExpertRunner* runner, ShardMetrics* metrics, Options options)
    : runner_(runner),
      metrics_(metrics),
      options_(std::move(options)),
      rendezvous_(runner->sparse_of_layer()),
      thread_([this] { ThreadMain(); }) {}

TokenBatcher::~TokenBatcher() { Stop(); }

absl::Status TokenBatcher::Submit(QueuedDispatch dispatch) {
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(health_);
    if (stopping_) return errors::Draining("expert shard");
    if (queue_.size() >= static_cast<size_t>(options_.max_queued_dispatches)) {
      return errors::Overloaded("dispatch queue", options_.max_queued_dispatches);
    }
    if (dispatch.worker != 0) {
      rendezvous_.Came(dispatch.worker, static_cast<int>(dispatch.frame.header.layer()),
                       absl::Now());
    }
    queue_.push_back(std::move(dispatch));
    metrics_->queue_frames.Set(static_cast<double>(queue_.size()));
  }
  bell_.Ring();
  return absl::OkStatus();
}

uint64_t TokenBatcher::AddWorker() {
  absl::MutexLock lock(&mutex_);
  rendezvous_.Joined(++last_worker_);
  return last_worker_;
}

void TokenBatcher::RemoveWorker(uint64_t worker) {
  absl::MutexLock lock(&mutex_);
  rendezvous_.Left(worker);
}

void TokenBatcher::AddSource(std::shared_ptr<DispatchSource> source) {
  {
    absl::MutexLock lock(&mutex_);
    sources_.push_back(std::move(source));
  }
  bell_.Ring();
}

void TokenBatcher::RemoveSource(const DispatchSource* source) {
  std::shared_ptr<DispatchSource> removed;  // dropped without the lock
  absl::MutexLock lock(&mutex_);
  const auto found =
      absl::c_find_if(sources_, [source](const auto& other) { return other.get() == source; });
  if (found == sources_.end()) return;
  removed = std::move(*found);
  sources_.erase(found);
}

TensorBytes TokenBatcher::CopyTensor(absl::Span<const uint8_t> tensor) {
  std::shared_ptr<uint8_t> copy = pool_.Take(tensor.size());
  std::memcpy(copy.get(), tensor.data(), tensor.size());
  return TensorBytes(std::move(copy), tensor.size());
}

void TokenBatcher::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  bell_.Ring();
  absl::MutexLock lock(&join_mutex_);
  if (thread_.joinable()) thread_.join();
}

void TokenBatcher::ThreadMain() {
  while (true) {
    const uint32_t rings = bell_.rings();  // before looking, so that no ring is missed
    const bool stopping = Stopping();
    PollSources();
    absl::Time wait_until;
    Batch batch = TakeBatch(&wait_until);
    if (batch.empty()) {
      if (stopping) return;
      bell_.Wait(rings, wait_until);
      continue;
    }
    // What came too late is answered without computing it.
    const absl::Status well = health();
    const absl::Time now = absl::Now();
    Batch timely;
    for (QueuedDispatch& dispatch : batch) {
      if (Abandoned(dispatch)) {
        dispatch.done(absl::CancelledError("the stream ended"));
      } else if (dispatch.deadline <= now) {
        dispatch.done(absl::DeadlineExceededError("the dispatch's deadline passed in the queue"));
      } else if (!well.ok()) {
        dispatch.done(well);
      } else {
        timely.push_back(std::move(dispatch));
      }
    }
    if (!timely.empty()) Compute(std::move(timely));
  }
}

absl::Status TokenBatcher::health() {
  absl::MutexLock lock(&mutex_);
  return health_;
}

bool TokenBatcher::Stopping() {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void TokenBatcher::PollSources() {
  {
    absl::MutexLock lock(&mutex_);
    if (sources_.empty()) return;
    polled_ = sources_;  // a source submits, and so takes the lock
  }
  for (const auto& source : polled_) source->Poll();
  polled_.clear();  // may be the last user of one
}

TokenBatcher::Batch TokenBatcher::TakeBatch(absl::Time* wait_until) {
  *wait_until = absl::InfiniteFuture();
  absl::MutexLock lock(&mutex_);
  std::vector<uint32_t> waiting;  // layers
  for (const QueuedDispatch& dispatch : queue_) {
    const uint32_t layer = dispatch.frame.header.layer();
    if (absl::c_linear_search(waiting, layer)) continue;
    const absl::Time until = WaitUntil(layer);
    if (until == absl::InfinitePast()) return TakeLayer(layer);
    *wait_until = std::min(*wait_until, until);
    waiting.push_back(layer);
  }
  return {};
}

absl::Time TokenBatcher::WaitUntil(uint32_t layer) {
  if (!options_.wait_for_others || stopping_) return absl::InfinitePast();
  std::vector<uint64_t> present;
  for (const QueuedDispatch& dispatch : queue_) {
    if (dispatch.frame.header.layer() != layer) continue;
    present.push_back(dispatch.worker);
  }
  return rendezvous_.WaitUntil(static_cast<int>(layer), present, absl::Now());
}

TokenBatcher::Batch TokenBatcher::TakeLayer(uint32_t layer) {
  Batch batch;
  int64_t num_pairs = 0;
  std::deque<QueuedDispatch> others;
  for (QueuedDispatch& dispatch : queue_) {
    const int64_t pairs = dispatch.frame.header.pair_rows_size();
    const bool fits = batch.empty() || num_pairs + pairs <= options_.max_batch_pairs;
    if (dispatch.frame.header.layer() != layer || !fits) {
      others.push_back(std::move(dispatch));
      continue;
    }
    num_pairs += pairs;
    rendezvous_.Answered(dispatch.worker, static_cast<int>(layer));
    batch.push_back(std::move(dispatch));
  }
  queue_ = std::move(others);
  metrics_->queue_frames.Set(static_cast<double>(queue_.size()));
  return batch;
}

absl::Status TokenBatcher::OnRunFailed(int layer, const absl::Status& status) {
  LOG_ERROR("a batch of layer {} failed: {}", layer, status.ToString());
  if (!errors::IsDeviceFailure(status)) return status;
  const absl::Status lost = errors::LostDevice("expert shard", status);
  {
    absl::MutexLock lock(&mutex_);
    health_ = lost;
  }
  if (options_.on_device_failure) options_.on_device_failure(status);
  return lost;
}

void TokenBatcher::Compute(Batch batch) {
  const absl::Time start = absl::Now();
  const int layer = static_cast<int>(batch[0].frame.header.layer());
  std::vector<const v1::ExpertDispatch*> headers;
  int64_t num_rows = 0;
  for (const QueuedDispatch& dispatch : batch) {
    headers.push_back(&dispatch.frame.header);
    num_rows += dispatch.frame.header.num_rows();
  }
  MergePairs(headers, &pairs_);
  std::shared_ptr<uint8_t> merged;
  const BFloat16* hidden_states = MergeRows(batch, pool_, &merged);
  const size_t row_values = static_cast<size_t>(runner_->hidden_size());
  const int64_t num_pairs = static_cast<int64_t>(pairs_.pair_rows.size());
  const std::shared_ptr<uint8_t> output = pool_.Take(num_pairs * row_values * sizeof(BFloat16));
  auto* rows = reinterpret_cast<BFloat16*>(output.get());
  absl::Status status =
      runner_->Run(layer, hidden_states, num_rows, pairs_.pair_rows, pairs_.pair_experts, rows);
  const absl::Duration compute_time = absl::Now() - start;
  if (!status.ok()) status = OnRunFailed(layer, status);

  pairs_computed_.fetch_add(num_pairs, std::memory_order_relaxed);
  metrics_->rows_total.Increment(static_cast<double>(num_pairs));
  metrics_->batches_total.Increment();
  metrics_->batch_rows.Observe(static_cast<double>(num_pairs));
  metrics_->batch_dispatches.Observe(static_cast<double>(batch.size()));
  metrics_->compute_seconds.Observe(absl::ToDoubleSeconds(compute_time));
  metrics_->AddLoad(layer, runner_->expert_ids(), pairs_.pair_experts);

  for (size_t d = 0; d < batch.size(); ++d) {
    if (!status.ok()) {
      batch[d].done(status);
      continue;
    }
    DispatchResult result{{}, output, compute_time};
    for (const MergedPairs::Run& run : pairs_.runs[d]) {
      result.rows.push_back({rows + run.first_pair * row_values, run.num_pairs});
    }
    batch[d].done(std::move(result));
  }
}

}  // namespace conclave
