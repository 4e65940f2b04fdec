#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "worker/block_pool.h"
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

// Of whole prompts, in KV blocks, since the planner began.
struct PrefixCacheCounts {
  int64_t queried = 0;  // full blocks of sequences that began
  int64_t hit = 0;      // of those, the ones that were not computed
};

// Decides what a step computes, and finds the KV blocks for it. Borrows the sequences.
//
// - Decode first: the next token of every sequence that has only one to compute.
// - What is left of max_step_tokens goes to prompts (and forced ids), half of it to the earliest
//   arrival, half to the shortest. So a prompt waits for no more than twice the work of those
//   before it, however many short ones follow, and a short one not for the long ones before it.
//   Lengths within a factor of two count as equal; among equals the earliest is first.
// - Decodes leave an eighth of the step to prompts that wait, and take turns if they do not fit.
// - The head of the queue is overtaken by at most kMaxOvertakes others, then it is next, and
//   all wait until there are blocks for it.
// - When blocks run out the latest arrival gives its own back; it keeps its tokens and is computed
//   again later, as far as the prefix cache does not have it.
// - A background sequence runs only while there is no other.
class StepPlanner {
 public:
  static constexpr int kMaxOvertakes = 4;

  StepPlanner(const StepPlannerOptions& options, BlockPool& blocks)
      : options_(options), blocks_(blocks) {}

  // Enters the queue by arrival.
  void Add(Sequence* sequence);
  // Finished or cancelled: leaves the queue or the running set and frees its blocks.
  void Remove(Sequence* sequence);

  // Allocates the blocks of what it plans. Empty if nothing can run: nothing waits, or every
  // reader is too far behind.
  std::vector<PlannedSequence> Plan();
  // The next `num_tokens` of the sequence were computed: the blocks they fill enter the prefix
  // cache.
  void OnComputed(Sequence* sequence, int64_t num_tokens);

  const std::vector<Sequence*>& running() const { return running_; }
  const std::deque<Sequence*>& waiting() const { return waiting_; }
  const std::deque<Sequence*>& background() const { return background_; }
  int64_t num_preemptions() const { return num_preemptions_; }
  const PrefixCacheCounts& prefix_cache() const { return prefix_cache_; }

 private:
  enum class Order { kArrival, kShortest };
  // A plan in the making.
  struct Draft {
    std::vector<PlannedSequence> plan;
    int64_t left = 0;        // of max_step_tokens
    bool preempted = false;  // then nobody is admitted: blocks are short
  };

  void PlanDecodes(Draft& draft);
  // Gives up to `share` tokens to prompts in this order.
  void PlanPrefills(Draft& draft, Order order, int64_t share);
  void PlanBackground(Draft& draft);
  // Gives up to `num_tokens` more to a running sequence; returns how many it got.
  int64_t Give(Draft& draft, Sequence* sequence, int64_t num_tokens);
  // Makes room for `num_tokens` more tokens of `sequence`, preempting later arrivals.
  bool Reserve(Draft& draft, Sequence* sequence, int64_t num_tokens);
  void Preempt(Draft& draft, Sequence* sequence);

  // The sequence that would leave the queue next, or null.
  Sequence* NextWaiting(Order order) const;
  // Moves it to the running ones if blocks for all it has are left.
  bool Admit(const Draft& draft, Sequence* sequence);
  // Whether the sequence came closer to its end by blocks of the prefix cache.
  void TakeCached(Sequence* sequence);
  absl::Span<const uint32_t> CachableIds(const Sequence* sequence) const;

  const StepPlannerOptions options_;
  BlockPool& blocks_;
  std::deque<Sequence*> waiting_;     // by arrival
  std::vector<Sequence*> running_;    // by arrival
  std::deque<Sequence*> background_;  // by arrival; only the first holds blocks
  int64_t num_preemptions_ = 0;
  PrefixCacheCounts prefix_cache_;
  uint64_t step_ = 0;
  uint64_t turns_ = 0;  // given
};

}  // namespace conclave
