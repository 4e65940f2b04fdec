#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "worker/kv_cache.h"
#include "worker/sequence.h"

namespace conclave {

// One sequence's share of a step: its next `num_tokens` pending tokens.
struct PlannedSequence {
  Sequence* sequence = nullptr;
  int64_t num_tokens = 0;
};

struct StepPlannerOptions {
  int max_running = 0;      // sequences that hold KV blocks
  int max_step_tokens = 0;  // rows of one forward pass
};

// Decides what a step computes: every running sequence's next token first, then chunks of prompts
// and forced ids in what is left of max_step_tokens, then waiting sequences as blocks allow.
// When blocks run out the latest arrival gives its own back and is recomputed later; the tokens
// it has are kept. Borrows the sequences.
class StepPlanner {
 public:
  StepPlanner(const StepPlannerOptions& options, BlockPool& blocks)
      : options_(options), blocks_(blocks) {}

  // Enters the queue by arrival.
  void Add(Sequence* sequence);
  // Finished or cancelled: leaves the queue or the running set and frees its blocks.
  void Remove(Sequence* sequence);

  // Allocates the blocks of what it plans. Empty if nothing can run: nothing waits, or every
  // reader is too far behind.
  std::vector<PlannedSequence> Plan();

  const std::vector<Sequence*>& running() const { return running_; }
  const std::deque<Sequence*>& waiting() const { return waiting_; }
  int64_t num_preemptions() const { return num_preemptions_; }

 private:
  // Makes room for `num_tokens` more tokens of `sequence`, preempting unplanned later arrivals.
  bool Reserve(Sequence* sequence, int64_t num_tokens, const std::vector<PlannedSequence>& plan);
  void Preempt(Sequence* sequence);
  void Admit(std::vector<PlannedSequence>& plan, int64_t& budget);

  const StepPlannerOptions options_;
  BlockPool& blocks_;
  std::deque<Sequence*> waiting_;   // by arrival
  std::vector<Sequence*> running_;  // by arrival
  int64_t num_preemptions_ = 0;
};

}  // namespace conclave
