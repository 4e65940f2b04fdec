#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace conclave {

// Raw bytes of an id; empty for control tokens and padding. Must outlive what it is given to.
using TokenBytes = std::function<absl::string_view(uint32_t id)>;

// The longest proper prefix of a UTF-8 character at the end of `bytes` (0 to 3 bytes), or empty.
absl::string_view IncompleteUtf8Tail(absl::string_view bytes);
// Bytes that the character begun by `tail` still needs: 0 for an empty tail.
int MissingUtf8Bytes(absl::string_view tail);

// The ids whose bytes are no whole UTF-8 string: only these can leave a character open. Made once
// per model: 1,448 of Qwen3's 151,669.
std::vector<uint32_t> IdsThatSplitCharacters(const TokenBytes& token_bytes, uint32_t num_ids);

enum class ThinkingPhase { kOutside, kThinking, kForcing, kAnswer };
enum class ThinkingEndedBy { kNone, kNatural, kBudget, kAnswerReserve, kClient };

struct ThinkingAutomatonOptions {
  bool enabled = false;
  uint32_t start_id = 0;             // <think>
  uint32_t end_id = 0;               // </think>
  int64_t budget = -1;               // ids the model may choose inside thinking; -1: no limit
  std::vector<uint32_t> forced_ids;  // what is appended at the budget; holds end_id
  int64_t answer_reserve = 0;        // ids of max_tokens kept for the answer; 0: none
  int64_t max_tokens = 0;            // generated ids in all
  bool starts_inside = false;        // the prompt ends inside thinking
  uint32_t tool_call_start_id = 0;   // <tool_call>; 0: the vocabulary has none
  uint32_t tool_call_end_id = 0;
  std::vector<uint32_t> answer_prefix_ids;     // forced where the answer begins, once
  std::vector<uint32_t> answer_separator_ids;  // and these before it after a natural end
};

// What a request carries when it moves to another worker.
struct ThinkingSnapshot {
  ThinkingPhase phase = ThinkingPhase::kOutside;
  int64_t used = 0;  // ids the model chose inside a block; its two marks and tool calls not counted
  int64_t forced = 0;  // ids forced; end_id not counted
  ThinkingEndedBy ended_by = ThinkingEndedBy::kNone;
  int64_t budget = -1;  // in force now
  bool in_tool_call = false;
  bool finish_requested = false;
  std::string partial_utf8;    // bytes of a character begun and not finished
  bool prefix_forced = false;  // the answer's prefix is in the text
  friend bool operator==(const ThinkingSnapshot&, const ThinkingSnapshot&) = default;
};

// OUTSIDE -> THINKING -> (FORCING ->) ANSWER, and back to THINKING if the model opens another
// block, with what is left of the one budget. Pure: it sees ids and says when to force.
//
// With an answer prefix the answer is forced to begin with it: at the start if the prompt does not
// end inside thinking, else after the first block.
//
// Invariants: used <= budget at all times; forcing starts neither inside a UTF-8 character nor
// inside a tool call, and the early-stop ids never follow a natural end. A character begun inside
// the budget always fits into it: near the limit the ids that could not be completed in time are
// forbidden.
class ThinkingAutomaton {
 public:
  ThinkingAutomaton(ThinkingAutomatonOptions options, TokenBytes token_bytes);

  // Continues where another automaton of the same options stood after `num_generated` ids.
  void Restore(const ThinkingSnapshot& snapshot, int64_t num_generated);

  // The model chose `id`.
  void OnSampled(uint32_t id);
  // The forced ids were appended: FORCING -> ANSWER.
  void OnForced();

  // True: append forced_ids() now, in one chunk, then call OnForced.
  bool must_force() const { return state_.phase == ThinkingPhase::kForcing; }
  absl::Span<const uint32_t> forced_ids() const { return due_; }

  // Ids that must not be sampled next, out of `splitting_ids` (IdsThatSplitCharacters).
  std::vector<uint32_t> ForbiddenIds(absl::Span<const uint32_t> splitting_ids) const;

  // "Answer now": ends thinking at the next whole character, also when it opens later.
  void RequestFinish();
  // A new budget, counted from the start of thinking. Not below what is used already.
  void SetBudget(int64_t budget);

  const ThinkingSnapshot& state() const { return state_; }

 private:
  // Ids the model may still choose in this block before it must be forced.
  int64_t Room() const;
  void Enter();
  void MaybeForce();
  // -> FORCING: what is due follows from who ended thinking, so that a Restore finds it too.
  void StartForcing();
  bool prefix_due() const { return !state_.prefix_forced && !options_.answer_prefix_ids.empty(); }
  void TrackBytes(uint32_t id);
  void TrackToolCall(uint32_t id);
  bool has_tool_tags() const { return options_.tool_call_start_id != 0; }

  ThinkingAutomatonOptions options_;
  TokenBytes token_bytes_;
  ThinkingSnapshot state_;
  std::vector<uint32_t> due_;  // in FORCING
  int64_t num_generated_ = 0;
};

}  // namespace conclave
