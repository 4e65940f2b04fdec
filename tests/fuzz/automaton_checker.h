#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "text/utf8.h"
#include "worker/thinking_automaton.h"

namespace conclave {

// A vocabulary for the automaton: ids 0..255 are the bytes, then come markup and pieces that begin,
// continue or end a character in the middle.
inline constexpr uint32_t kThinkTag = 256, kEndThinkTag = 257, kCallTag = 258, kEndCallTag = 259;
inline constexpr uint32_t kFirstPiece = 261;  // 260 is another control token

inline absl::string_view CheckerBytes(uint32_t id) {
  static const std::vector<std::string>* const all = [] {
    auto* bytes = new std::vector<std::string>;
    for (int i = 0; i < 256; ++i) bytes->emplace_back(1, static_cast<char>(i));
    bytes->resize(kFirstPiece);  // markup has no bytes
    for (const char* piece : {"ab", "\xc3\xa9", "\xe4\xbd", "\xbd\xa0", "\xa0x", "\xf0\x9f\x98",
                              "\x80\xf0\x9f", "a\xe4", "\xa0\xe4\xbd", "x\xff", "\xf0\x9f"}) {
      bytes->emplace_back(piece);
    }
    return bytes;
  }();
  return id < all->size() ? absl::string_view((*all)[id]) : absl::string_view();
}
inline constexpr uint32_t kNumCheckerIds = kFirstPiece + 11;

inline const std::vector<uint32_t>& CheckerSplittingIds() {
  static const auto* const ids =
      new std::vector<uint32_t>(IdsThatSplitCharacters(CheckerBytes, kNumCheckerIds));
  return *ids;
}

// Options over that vocabulary; 'x' is what one may sample where an id is forbidden.
inline ThinkingAutomatonOptions CheckerOptions(int64_t budget) {
  ThinkingAutomatonOptions options;
  options.enabled = true;
  options.start_id = kThinkTag;
  options.end_id = kEndThinkTag;
  options.budget = budget;
  options.forced_ids = {'.', kEndThinkTag, '\n'};
  options.max_tokens = 1000;
  options.tool_call_start_id = kCallTag;
  options.tool_call_end_id = kEndCallTag;
  return options;
}

// Drives an automaton and says what rule of its header it broke first. Of the rules it keeps its
// own account, made from the ids alone.
class AutomatonChecker {
 public:
  explicit AutomatonChecker(ThinkingAutomatonOptions options)
      : options_(std::move(options)),
        automata_{ThinkingAutomaton(options_, CheckerBytes)},
        budget_(options_.budget) {
    inside_ = options_.enabled && options_.starts_inside;
    if (options_.enabled && !inside_) answer_begins_ = true;
    Settle();
  }

  // Empty, or the rule that was broken.
  const std::string& violation() const { return violation_; }
  bool must_force() const { return automata_[0].must_force(); }
  const ThinkingSnapshot& state() const { return automata_[0].state(); }
  int64_t num_generated() const { return num_generated_; }

  // The model chooses `id`, or 'x' where that is forbidden. Not while must_force().
  void Sample(uint32_t id) {
    const std::vector<uint32_t> forbidden = automata_[0].ForbiddenIds(CheckerSplittingIds());
    for (const ThinkingAutomaton& other : automata_) {
      Want(other.ForbiddenIds(CheckerSplittingIds()) == forbidden, "a copy forbids other ids");
    }
    Want(forbidden.empty() || (inside_ && !in_call_), "ids are forbidden outside thinking");
    if (std::find(forbidden.begin(), forbidden.end(), id) != forbidden.end()) id = 'x';
    for (ThinkingAutomaton& automaton : automata_) automaton.OnSampled(id);
    ++num_generated_;
    if (options_.enabled) Account(id);
    Settle();
  }

  // The forced ids are appended. Only while must_force().
  void Force() {
    const std::vector<uint32_t> ids(automata_[0].forced_ids().begin(),
                                    automata_[0].forced_ids().end());
    Want(ids == due_, "other ids are forced than are due");
    for (ThinkingAutomaton& automaton : automata_) automaton.OnForced();
    num_generated_ += static_cast<int64_t>(ids.size());
    if (early_stop_) {
      for (const uint32_t id : options_.forced_ids) forced_ += id != options_.end_id;
      if (options_.answer_reserve > 0 && !called_) {
        // A block that opens inside the reserve is closed at once.
        const int64_t latest = std::max(options_.max_tokens - options_.answer_reserve,
                                        entered_at_ + static_cast<int64_t>(ids.size()));
        Want(num_generated_ <= latest, "the answer's reserve was used up");
      }
    }
    inside_ = forcing_ = early_stop_ = answer_begins_ = false;
    if (!prefix_done_ && !options_.answer_prefix_ids.empty()) {
      prefix_done_ = true;
      for (const uint32_t id : options_.answer_prefix_ids) TrackCall(id);
    }
    Settle();
  }

  void RequestFinish() {
    for (ThinkingAutomaton& automaton : automata_) automaton.RequestFinish();
    finish_ |= options_.enabled;
    Settle();
  }

  void SetBudget(int64_t budget) {
    for (ThinkingAutomaton& automaton : automata_) automaton.SetBudget(budget);
    if (options_.enabled) {
      budget_ = automata_[0].state().budget;
      if (budget < 0) Want(budget_ == -1, "a negative budget is no limit");
      if (budget >= 0) {
        Want(budget_ >= budget && budget_ <= std::max(budget, used_ + 3), "a budget was not kept");
      }
    }
    Settle();
  }

  // Moves the request: from here on a second automaton, made from the first one's state, must do
  // the same.
  void Fork() {
    ThinkingAutomaton copy(options_, CheckerBytes);
    copy.Restore(automata_[0].state(), num_generated_);
    automata_.resize(1, copy);
    automata_.push_back(std::move(copy));
    Settle();
  }

 private:
  void Want(bool holds, const char* otherwise) {
    if (!holds && violation_.empty()) violation_ = otherwise;
  }

  void TrackCall(uint32_t id) {
    if (options_.tool_call_start_id == 0) return;
    if (id == options_.tool_call_start_id) in_call_ = true;
    if (id == options_.tool_call_end_id) in_call_ = false;
  }

  // What kind of id the model chose.
  void Account(uint32_t id) {
    const bool was_in_call = in_call_;
    TrackCall(id);
    called_ |= in_call_;
    if (inside_ && id == options_.end_id) {
      inside_ = in_call_ = false;
      ended_naturally_ = answer_begins_ = true;
      ++marks_;
    } else if (inside_) {
      const bool of_call = was_in_call || in_call_;
      ++(of_call ? call_ids_ : used_);
      if (of_call || CheckerBytes(id).empty()) {
        character_ = Utf8Repairer();
      } else {
        std::string ignored;
        character_.Append(CheckerBytes(id), &ignored);
      }
    } else if (id == options_.start_id && !in_call_) {
      inside_ = true;
      ended_naturally_ = called_ = false;
      entered_at_ = num_generated_;
      character_ = Utf8Repairer();
      ++marks_;
    } else {
      ++outside_;
    }
  }

  bool CharacterIsOpen() const {
    Utf8Repairer copy = character_;
    std::string rest;
    copy.Flush(&rest);
    return !rest.empty();
  }

  bool PrefixIsDue() const { return !prefix_done_ && !options_.answer_prefix_ids.empty(); }

  bool ReserveIsReached() const {
    if (options_.answer_reserve == 0) return false;
    const size_t num_forced =
        options_.forced_ids.size() + (PrefixIsDue() ? options_.answer_prefix_ids.size() : 0);
    return num_generated_ + static_cast<int64_t>(num_forced) + options_.answer_reserve >=
           options_.max_tokens;
  }

  // What is to be forced in the state reached. Once due it stays so.
  void DecideForcing() {
    if (forcing_) return;
    const auto add = [this](const std::vector<uint32_t>& ids) {
      due_.insert(due_.end(), ids.begin(), ids.end());
    };
    due_.clear();
    const bool budget_is_used = budget_ >= 0 && used_ >= budget_;
    if (inside_ && !in_call_ && !CharacterIsOpen() &&
        (finish_ || budget_is_used || ReserveIsReached())) {
      forcing_ = early_stop_ = true;
      add(options_.forced_ids);
      const ThinkingEndedBy by = state().ended_by;
      Want((by == ThinkingEndedBy::kClient && finish_) ||
               (by == ThinkingEndedBy::kBudget && budget_is_used) ||
               (by == ThinkingEndedBy::kAnswerReserve && ReserveIsReached()),
           "thinking was ended for another reason");
    } else if (!inside_ && answer_begins_ && PrefixIsDue()) {
      forcing_ = true;
      if (ended_naturally_) add(options_.answer_separator_ids);
    }
    if (forcing_ && PrefixIsDue()) add(options_.answer_prefix_ids);
    answer_begins_ = answer_begins_ && forcing_;
  }

  void Settle() {
    DecideForcing();
    const ThinkingSnapshot& now = state();
    for (const ThinkingAutomaton& other : automata_) {
      Want(other.state() == now, "a restored copy goes another way");
      Want(!must_force() || other.forced_ids() == automata_[0].forced_ids(),
           "a restored copy forces other ids");
    }
    Want(must_force() == forcing_, forcing_ ? "nothing is forced" : "forced at the wrong moment");
    Want(now.used == used_, "used is not the number of ids chosen inside thinking");
    Want(now.forced == forced_, "forced is not the number of ids forced");
    Want(now.budget == budget_, "the budget changed by itself");
    Want(now.budget < 0 || !options_.enabled || now.used <= now.budget, "used is above the budget");
    Want(now.in_tool_call == in_call_, "it lost track of a tool call");
    if (!forcing_ && options_.enabled) {
      Want((now.phase == ThinkingPhase::kThinking) == inside_, "it lost track of thinking");
      if (ended_naturally_) {
        Want(now.ended_by == ThinkingEndedBy::kNatural, "a natural end was not reported as one");
      }
      if (!options_.starts_inside && options_.answer_prefix_ids.empty() && forced_ == 0) {
        Want(used_ + call_ids_ + marks_ + outside_ == num_generated_, "ids are counted twice");
      }
    }
  }

  const ThinkingAutomatonOptions options_;
  std::vector<ThinkingAutomaton> automata_;
  std::string violation_;

  bool inside_ = false, in_call_ = false, finish_ = false;
  bool called_ = false;           // a call in this block may run past the reserve
  bool ended_naturally_ = false;  // the last block
  bool answer_begins_ = false;    // with the next id, if no prefix comes first
  bool forcing_ = false, early_stop_ = false, prefix_done_ = false;
  std::vector<uint32_t> due_;
  Utf8Repairer character_;  // of the thinking text
  int64_t budget_;
  int64_t num_generated_ = 0, entered_at_ = 0;
  int64_t used_ = 0, forced_ = 0, call_ids_ = 0, marks_ = 0, outside_ = 0;
};

// One request from its options to max_tokens, everything drawn: draw(n) gives a number below n, and
// more() whether to go on. Returns the rule that was broken, or an empty string.
template <typename Draw, typename More>
std::string DriveAutomaton(Draw draw, More more) {
  ThinkingAutomatonOptions options = CheckerOptions(static_cast<int64_t>(draw(14)) - 1);
  const uint32_t flags = draw(256);
  options.enabled = flags % 32 != 0;
  options.starts_inside = (flags & 64) != 0;
  if ((flags & 128) != 0) options.answer_reserve = 8;
  if (flags % 5 == 0) options.answer_prefix_ids = {kCallTag, '{', '"'};
  if (flags % 10 == 0) options.answer_separator_ids = {'\n', '\n'};
  if (flags % 7 == 0) options.tool_call_start_id = options.tool_call_end_id = 0;
  options.max_tokens = 20 + draw(200);
  AutomatonChecker checker(options);
  while (more() && checker.num_generated() < options.max_tokens && checker.violation().empty()) {
    const uint32_t what = draw(32);
    if (what == 0) checker.RequestFinish();
    if (what == 1) checker.SetBudget(static_cast<int64_t>(draw(16)) - 2);
    if (what == 2) checker.Fork();
    if (checker.must_force()) {
      checker.Force();
    } else if (what < 12) {
      checker.Sample(kThinkTag + draw(kNumCheckerIds - kThinkTag));
    } else {
      checker.Sample(draw(256));
    }
  }
  return checker.violation();
}

}  // namespace conclave
