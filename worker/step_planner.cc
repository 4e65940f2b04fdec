#include "worker/step_planner.h"

#include <algorithm>
#include <bit>

#include "common/limits.h"

namespace conclave {
namespace {

constexpr int64_t kBlockTokens = limits::kKvBlockTokens;
// A chunk of at least so many tokens ends at a block's end, so that another sequence with the same
// prompt finds the block. Of a smaller one, up to 15 tokens would be too much to give up.
constexpr int64_t kMinAlignedChunk = 4 * kBlockTokens;

bool Earlier(const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; }

int64_t BlocksFor(int64_t num_tokens) { return (num_tokens + kBlockTokens - 1) / kBlockTokens; }

// Lengths of one class are within a factor of two.
int LengthClass(const Sequence* sequence) {
  const int64_t length = sequence->num_pending() - sequence->expected_cached;
  return std::bit_width(static_cast<uint64_t>(std::max<int64_t>(length, 1)));
}

bool Shorter(const Sequence* a, const Sequence* b) {
  const int length_a = LengthClass(a), length_b = LengthClass(b);
  return length_a != length_b ? length_a < length_b : Earlier(a, b);
}

PlannedSequence* Find(std::vector<PlannedSequence>& plan, const Sequence* sequence) {
  const auto found = std::find_if(plan.begin(), plan.end(), [&](const PlannedSequence& planned) {
    return planned.sequence == sequence;
  });
  return found == plan.end() ? nullptr : &*found;
}

void InsertByArrival(Sequence* sequence, auto& sequences) {
  sequences.insert(std::upper_bound(sequences.begin(), sequences.end(), sequence, Earlier),
                   sequence);
}

}  // namespace

// ---- the queue ----

void StepPlanner::Add(Sequence* sequence) {
  if (sequence->background) return InsertByArrival(sequence, background_);
  sequence->expected_cached = blocks_.CountCached(CachableIds(sequence)) * kBlockTokens;
  InsertByArrival(sequence, waiting_);
}

void StepPlanner::Remove(Sequence* sequence) {
  blocks_.Free(sequence->block_table);
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
  std::erase(background_, sequence);
}

void StepPlanner::Preempt(Draft& draft, Sequence* sequence) {
  ++num_preemptions_;
  draft.preempted = true;
  std::erase_if(draft.plan, [&](const PlannedSequence& planned) {
    if (planned.sequence == sequence) draft.left += planned.num_tokens;
    return planned.sequence == sequence;
  });
  blocks_.Free(sequence->block_table);
  sequence->prefix = CachedPrefix();
  sequence->num_computed = 0;
  sequence->preempted = true;
  std::erase(running_, sequence);
  Add(sequence);
}

Sequence* StepPlanner::NextWaiting(Order order) const {
  if (waiting_.empty() || running_.size() >= static_cast<size_t>(options_.max_running)) {
    return nullptr;
  }
  Sequence* first = waiting_.front();
  if (order == Order::kArrival || first->num_overtakes >= kMaxOvertakes) return first;
  return *std::min_element(waiting_.begin(), waiting_.end(), Shorter);
}

bool StepPlanner::Admit(const Draft& draft, Sequence* sequence) {
  if (draft.preempted) return false;
  TakeCached(sequence);
  // Room for all it has now and for one more block, lest it be preempted in its first steps; and
  // for what those that run have not been given yet.
  int64_t wanted = BlocksFor(static_cast<int64_t>(sequence->tokens.size())) -
                   static_cast<int64_t>(sequence->block_table.size()) + (running_.empty() ? 0 : 1);
  for (const Sequence* running : running_) {
    wanted += std::max<int64_t>(0, BlocksFor(static_cast<int64_t>(running->tokens.size())) -
                                       static_cast<int64_t>(running->block_table.size()));
  }
  if (wanted > blocks_.num_free()) {
    blocks_.Free(sequence->block_table);
    sequence->prefix = CachedPrefix();
    sequence->num_computed = 0;
    return false;
  }
  if (!sequence->preempted) {
    prefix_cache_.queried += static_cast<int64_t>(CachableIds(sequence).size()) / kBlockTokens;
    prefix_cache_.hit += sequence->prefix.num_blocks;
  }
  if (sequence != waiting_.front()) ++waiting_.front()->num_overtakes;
  sequence->expected_cached = 0;
  std::erase(waiting_, sequence);
  InsertByArrival(sequence, running_);
  return true;
}

// ---- the prefix cache ----

absl::Span<const uint32_t> StepPlanner::CachableIds(const Sequence* sequence) const {
  if (!blocks_.keeps_prefixes()) return {};
  return absl::MakeConstSpan(sequence->tokens.data(), sequence->first_needed_row());
}

void StepPlanner::TakeCached(Sequence* sequence) {
  const bool at_block =
      sequence->num_computed == sequence->prefix.num_blocks * kBlockTokens &&
      static_cast<int64_t>(sequence->block_table.size()) == sequence->prefix.num_blocks;
  if (!at_block) return;
  blocks_.TakeCached(CachableIds(sequence), sequence->prefix, sequence->block_table);
  sequence->num_computed = sequence->prefix.num_blocks * kBlockTokens;
}

void StepPlanner::OnComputed(Sequence* sequence, int64_t num_tokens) {
  sequence->num_computed += num_tokens;
  if (!blocks_.keeps_prefixes()) return;
  for (;;) {
    const int64_t begin = sequence->prefix.num_blocks * kBlockTokens;
    if (begin + kBlockTokens > sequence->num_computed) return;
    blocks_.Cache(absl::MakeConstSpan(sequence->tokens.data() + begin, kBlockTokens),
                  sequence->prefix, sequence->block_table);
  }
}

// ---- the plan ----

bool StepPlanner::Reserve(Draft& draft, Sequence* sequence, int64_t num_tokens) {
  const int64_t missing = BlocksFor(sequence->num_computed + num_tokens) -
                          static_cast<int64_t>(sequence->block_table.size());
  while (missing > blocks_.num_free()) {
    // Later arrivals give way to earlier ones, never the other way: the earliest always advances.
    Sequence* victim = running_.back();
    if (victim == sequence) return false;
    Preempt(draft, victim);
  }
  return missing <= 0 || blocks_.Allocate(missing, sequence->block_table);
}

int64_t StepPlanner::Give(Draft& draft, Sequence* sequence, int64_t num_tokens) {
  PlannedSequence* planned = Find(draft.plan, sequence);
  const int64_t before = planned != nullptr ? planned->num_tokens : 0;
  if (before == 0) {
    const int64_t cached_before = sequence->prefix.num_blocks;
    TakeCached(sequence);
    if (!sequence->preempted) prefix_cache_.hit += sequence->prefix.num_blocks - cached_before;
  }
  num_tokens = std::min(num_tokens, sequence->num_pending() - before);
  const int64_t end = sequence->num_computed + before + num_tokens;
  if (num_tokens >= kMinAlignedChunk && end < static_cast<int64_t>(sequence->tokens.size())) {
    num_tokens -= end % kBlockTokens;
  }
  if (num_tokens == 0) return 0;
  if (!Reserve(draft, sequence, before + num_tokens)) {
    // The latest arrival of all gives its own blocks back, so that earlier ones go on.
    if (before == 0 && running_.size() > 1) Preempt(draft, sequence);
    return 0;
  }
  planned = Find(draft.plan, sequence);  // a preemption edits the plan
  if (planned != nullptr) {
    planned->num_tokens += num_tokens;
  } else {
    draft.plan.push_back({sequence, num_tokens});
  }
  sequence->last_turn = ++turns_;
  draft.left -= num_tokens;
  return num_tokens;
}

void StepPlanner::PlanDecodes(Draft& draft) {
  std::vector<Sequence*> decodes;
  bool any_prefill = !waiting_.empty();
  for (Sequence* sequence : running_) {
    if (sequence->num_pending() > 1) any_prefill = true;
    if (sequence->num_pending() == 1 && sequence->sink->Writable()) decodes.push_back(sequence);
  }
  int64_t share = draft.left;
  if (any_prefill && share > 1) share -= std::max<int64_t>(1, share / 8);
  if (static_cast<int64_t>(decodes.size()) > share) {
    std::stable_sort(decodes.begin(), decodes.end(), [](const Sequence* a, const Sequence* b) {
      return a->last_turn < b->last_turn;
    });
  }
  for (Sequence* sequence : decodes) {
    if (share == 0) break;
    if (!std::binary_search(running_.begin(), running_.end(), sequence, Earlier)) continue;
    share -= Give(draft, sequence, 1);
  }
}

void StepPlanner::PlanPrefills(Draft& draft, Order order, int64_t share) {
  const auto before = order == Order::kArrival ? Earlier : Shorter;
  std::vector<Sequence*> running;
  for (Sequence* sequence : running_) {
    if (sequence->num_pending() > 1 && sequence->sink->Writable()) running.push_back(sequence);
  }
  std::sort(running.begin(), running.end(), before);
  auto next = running.begin();
  bool admits = true;
  while (share > 0) {
    Sequence* waiting = admits ? NextWaiting(order) : nullptr;
    if (waiting != nullptr && (next == running.end() || before(waiting, *next))) {
      admits = Admit(draft, waiting);
      if (admits) share -= Give(draft, waiting, share);
    } else if (next != running.end()) {
      Sequence* sequence = *next++;
      if (!std::binary_search(running_.begin(), running_.end(), sequence, Earlier)) continue;
      share -= Give(draft, sequence, share);
    } else {
      return;
    }
  }
}

void StepPlanner::PlanBackground(Draft& draft) {
  if (background_.empty()) return;
  Sequence* sequence = background_.front();
  TakeCached(sequence);
  const int64_t num_tokens =
      std::min<int64_t>({draft.left, sequence->num_pending(), limits::kBackgroundStepTokens});
  const int64_t missing = BlocksFor(sequence->num_computed + num_tokens) -
                          static_cast<int64_t>(sequence->block_table.size());
  if (missing > 0 && !blocks_.Allocate(missing, sequence->block_table)) return;
  draft.plan.push_back({sequence, num_tokens});
}

std::vector<PlannedSequence> StepPlanner::Plan() {
  ++step_;
  Draft draft;
  draft.left = options_.max_step_tokens;
  if (running_.empty() && waiting_.empty()) {
    PlanBackground(draft);
    return std::move(draft.plan);
  }
  PlanDecodes(draft);
  // The odd token goes to one and the other by turns: with one left to share, both go on.
  PlanPrefills(draft, Order::kArrival, (draft.left + static_cast<int64_t>(step_ % 2)) / 2);
  PlanPrefills(draft, Order::kShortest, draft.left);
  PlanPrefills(draft, Order::kArrival, draft.left);
  return std::move(draft.plan);
}

}  // namespace conclave
