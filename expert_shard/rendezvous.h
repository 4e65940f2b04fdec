#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace conclave {

// Decides how long dispatches of one layer had better wait for another worker's, so that the
// experts' weights are read once for both. Two workers that are out of step stay so by themselves:
// each finds the experts busy with the other's layer. Here the one that begins a step waits for the
// one that is past the middle of its own, and from then on each layer waits for whoever is about to
// ask for it. Nobody waits more than half of what its own layers take, nor for a worker that is
// idle or did not come as foreseen; a worker alone never waits.
//
// Only bookkeeping: it is told what comes and goes, and asked. Not thread-safe.
class Rendezvous {
 public:
  // The place of each layer among those that have experts, which a step goes through in order; -1
  // for a layer that has none.
  explicit Rendezvous(std::vector<int> rank_of_layer);

  void Joined(uint64_t worker) { workers_.try_emplace(worker); }
  // Workers that have not joined are ignored.
  void Came(uint64_t worker, int layer, absl::Time now);
  void Answered(uint64_t worker, int layer);
  void Left(uint64_t worker) { workers_.erase(worker); }

  // Until when dispatches of `layer` from the workers `present` should wait; InfinitePast if there
  // is nothing to wait for. Asked again whenever something came.
  absl::Time WaitUntil(int layer, absl::Span<const uint64_t> present, absl::Time now);

 private:
  struct Worker {
    int rank = -1;         // of the layer it asked for last, among those with experts
    bool answered = true;  // that one
    absl::Time came = absl::InfinitePast();
    absl::Duration cycle;  // from one layer to the next, on average
    absl::Duration turn;   // from the last layer to the next step's first
    int64_t ignored = 0;   // dispatches for which it is not waited for
  };

  // When `worker` is expected to ask for the layer of this rank; InfiniteFuture: nobody knows.
  absl::Time ExpectedAt(const Worker& worker, int rank) const;

  const std::vector<int> rank_of_layer_;
  int num_ranks_ = 0;
  absl::flat_hash_map<uint64_t, Worker> workers_;
};

}  // namespace conclave
