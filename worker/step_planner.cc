#include "worker/step_planner.h"

#include <algorithm>

#include "common/limits.h"

namespace conclave {
namespace {

bool Earlier(const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; }

int64_t BlocksFor(int64_t num_tokens) {
  return (num_tokens + limits::kKvBlockTokens - 1) / limits::kKvBlockTokens;
}

bool IsPlanned(const std::vector<PlannedSequence>& plan, const Sequence* sequence) {
  return std::any_of(plan.begin(), plan.end(),
                     [&](const PlannedSequence& planned) { return planned.sequence == sequence; });
}

}  // namespace

void StepPlanner::Add(Sequence* sequence) {
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), sequence, Earlier), sequence);
}

void StepPlanner::Remove(Sequence* sequence) {
  blocks_.Free(sequence->block_table);
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
}

void StepPlanner::Preempt(Sequence* sequence) {
  ++num_preemptions_;
  blocks_.Free(sequence->block_table);
  sequence->num_computed = 0;
  std::erase(running_, sequence);
  Add(sequence);
}

bool StepPlanner::Reserve(Sequence* sequence, int64_t num_tokens,
                          const std::vector<PlannedSequence>& plan) {
  const int64_t missing = BlocksFor(sequence->num_computed + num_tokens) -
                          static_cast<int64_t>(sequence->block_table.size());
  while (missing > blocks_.num_free()) {
    // Later arrivals give way to earlier ones, never the other way: the earliest always advances.
    Sequence* victim = running_.back();
    if (victim == sequence || Earlier(victim, sequence) || IsPlanned(plan, victim)) return false;
    Preempt(victim);
  }
  return missing <= 0 || blocks_.Allocate(missing, sequence->block_table);
}

std::vector<PlannedSequence> StepPlanner::Plan() {
  std::vector<PlannedSequence> plan;
  int64_t budget = options_.max_step_tokens;
  for (const bool decodes : {true, false}) {
    // A copy: preemption edits running_.
    for (Sequence* sequence : std::vector<Sequence*>(running_)) {
      if (budget == 0) break;
      const bool still_running =
          std::binary_search(running_.begin(), running_.end(), sequence, Earlier);
      if (!still_running || (sequence->num_pending() == 1) != decodes) continue;
      if (!sequence->sink->Writable()) continue;
      const int64_t num_tokens = std::min(budget, sequence->num_pending());
      if (!Reserve(sequence, num_tokens, plan)) {
        // The latest arrival of all gives its own blocks back, so that earlier ones go on.
        if (sequence == running_.back() && running_.size() > 1) Preempt(sequence);
        continue;
      }
      plan.push_back({sequence, num_tokens});
      budget -= num_tokens;
    }
  }
  Admit(plan, budget);
  return plan;
}

void StepPlanner::Admit(std::vector<PlannedSequence>& plan, int64_t& budget) {
  while (budget > 0 && !waiting_.empty() &&
         running_.size() < static_cast<size_t>(options_.max_running)) {
    Sequence* sequence = waiting_.front();
    // Room for all it has now and for one more block, lest it be preempted in its first steps.
    const int64_t wanted =
        BlocksFor(static_cast<int64_t>(sequence->tokens.size())) + (running_.empty() ? 0 : 1);
    if (wanted > blocks_.num_free()) return;
    waiting_.pop_front();
    running_.insert(std::upper_bound(running_.begin(), running_.end(), sequence, Earlier),
                    sequence);
    const int64_t num_tokens = std::min(budget, sequence->num_pending());
    if (!blocks_.Allocate(BlocksFor(num_tokens), sequence->block_table)) return;
    plan.push_back({sequence, num_tokens});
    budget -= num_tokens;
  }
}

}  // namespace conclave
