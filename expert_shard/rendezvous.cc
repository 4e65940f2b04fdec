#include "expert_shard/rendezvous.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"

namespace conclave {
namespace {

// Weight of the newest time in an average: follows a change within about eight layers.
constexpr double kNewest = 0.125;

void Average(absl::Duration newest, absl::Duration* average) {
  *average = *average == absl::ZeroDuration() ? newest : *average + kNewest * (newest - *average);
}

}  // namespace

Rendezvous::Rendezvous(std::vector<int> rank_of_layer) : rank_of_layer_(std::move(rank_of_layer)) {
  for (const int rank : rank_of_layer_) num_ranks_ = std::max(num_ranks_, rank + 1);
}

void Rendezvous::Came(uint64_t worker_id, int layer, absl::Time now) {
  const auto found = workers_.find(worker_id);
  if (found == workers_.end()) return;
  Worker& worker = found->second;
  const int rank = rank_of_layer_[layer];
  if (rank == worker.rank && !worker.answered) return;  // another frame of the same dispatch
  // A long pause is no part of a step: the worker was idle.
  const absl::Duration since = now - worker.came;
  if (rank == worker.rank + 1 && worker.rank >= 0) Average(since, &worker.cycle);
  if (rank == 0 && worker.rank == num_ranks_ - 1 && since < 4 * num_ranks_ * worker.cycle) {
    Average(since, &worker.turn);
  }
  worker.rank = rank;
  worker.answered = false;
  worker.came = now;
  if (worker.ignored > 0) --worker.ignored;
}

void Rendezvous::Answered(uint64_t worker_id, int layer) {
  const auto found = workers_.find(worker_id);
  if (found == workers_.end() || found->second.rank != rank_of_layer_[layer]) return;
  found->second.answered = true;
}

absl::Time Rendezvous::ExpectedAt(const Worker& worker, int rank) const {
  if (worker.rank < 0 || worker.cycle == absl::ZeroDuration()) return absl::InfiniteFuture();
  if (rank > worker.rank) return worker.came + (rank - worker.rank) * worker.cycle;
  const int left = num_ranks_ - 1 - worker.rank;
  return worker.came + (left + rank) * worker.cycle + std::max(worker.turn, worker.cycle);
}

absl::Time Rendezvous::WaitUntil(int layer, absl::Span<const uint64_t> present, absl::Time now) {
  const int rank = rank_of_layer_[layer];
  // The patience of the one among those present that is in the greatest hurry.
  absl::Time patience = absl::InfiniteFuture();
  for (const uint64_t id : present) {
    const auto found = workers_.find(id);
    if (found == workers_.end()) return absl::InfinitePast();
    const Worker& worker = found->second;
    const absl::Duration half = worker.cycle / 2;
    patience = std::min(patience, worker.came + (rank == 0 ? num_ranks_ * half : half));
  }
  absl::Time until = absl::InfinitePast();
  for (auto& [id, worker] : workers_) {
    if (absl::c_linear_search(present, id) || worker.ignored > 0) continue;
    const bool is_next = rank == 0 ? worker.rank >= num_ranks_ / 2 : worker.rank == rank - 1;
    if (!is_next) continue;
    const absl::Time expected = ExpectedAt(worker, rank);
    if (expected > patience) continue;
    const absl::Time latest = std::min(expected + worker.cycle / 2, patience);
    if (latest <= now) {
      worker.ignored = 2 * num_ranks_;  // it did not come: idle, or slower than it was
      continue;
    }
    until = std::max(until, latest);
  }
  return until;
}

}  // namespace conclave
