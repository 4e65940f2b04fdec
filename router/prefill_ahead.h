#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "router/router_metrics.h"
#include "router/served_model.h"
#include "router/worker_pool.h"
#include "text/chat_template.h"

namespace conclave {

// A chat turn that was answered.
struct FinishedTurn {
  ChatPrompt conversation;             // up to the answer
  std::string answer;                  // as the client got it, without thinking
  std::vector<uint32_t> computed_ids;  // prompt and generated ones: what the worker has
  int64_t num_prompt = 0;              // of computed_ids
  int worker = -1;
};

// Lets the worker that answered compute the beginning of the conversation's next prompt while it
// has nothing else to do: history loses its thinking, so that all from the answer on would have to
// be computed when the user waits for it. Only where there is enough to win. Thread-safe.
class PrefillAhead {
 public:
  // All borrowed; all outlive this.
  PrefillAhead(const ServedModel* model, WorkerPool* pool, RouterMetrics* metrics)
      : model_(model), pool_(pool), metrics_(metrics) {}
  // Cancels what is under way and waits for its end. No Start may run any more.
  ~PrefillAhead();

  // Renders and tokenizes, so not for gRPC's threads; the computing is not waited for.
  void Start(const FinishedTurn& turn);

 private:
  class Call;

  void OnDone(Call* call, const absl::Status& status);
  bool NoCalls() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return calls_.empty(); }

  const ServedModel* const model_;
  WorkerPool* const pool_;
  RouterMetrics* const metrics_;
  absl::Mutex mutex_;
  absl::flat_hash_set<Call*> calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace conclave
