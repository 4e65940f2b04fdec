// What must hold for every stream of ids, every budget and every moment: random streams against the
// checker's own account, and every position of fixed ones.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/automaton_checker.h"
#include "worker/thinking_automaton.h"

namespace conclave {
namespace {

TEST(ThinkingAutomatonProperty, RandomStreamsKeepEveryRule) {
  std::mt19937 random(20261124);
  for (int round = 0; round < 20000; ++round) {
    const std::string violation = DriveAutomaton(
        [&random](uint32_t bound) { return static_cast<uint32_t>(random() % bound); },
        [] { return true; });
    ASSERT_EQ(violation, "") << "round " << round;
  }
}

// What the model of a script does: it thinks `num_thoughts` ids and ends by itself.
struct Ended {
  int64_t used = 0;
  int64_t forced = 0;
  ThinkingEndedBy by = ThinkingEndedBy::kNone;
  friend bool operator==(const Ended&, const Ended&) = default;
};

void PrintTo(const Ended& ended, std::ostream* out) {
  *out << "used " << ended.used << ", forced " << ended.forced << ", ended by "
       << static_cast<int>(ended.by);
}

Ended ThinkAndEnd(int64_t budget, int num_thoughts, bool starts_inside) {
  ThinkingAutomatonOptions options = CheckerOptions(budget);
  options.starts_inside = starts_inside;
  AutomatonChecker checker(options);
  std::vector<uint32_t> script(num_thoughts, 'a');
  if (!starts_inside) script.insert(script.begin(), kThinkTag);
  script.push_back(kEndThinkTag);
  for (const uint32_t id : script) {
    if (checker.must_force()) break;
    checker.Sample(id);
  }
  if (checker.must_force()) checker.Force();
  for (int i = 0; i < 20; ++i) {
    EXPECT_FALSE(checker.must_force()) << "forced into the answer";
    checker.Sample('b');
  }
  EXPECT_EQ(checker.violation(), "") << "budget " << budget << ", thoughts " << num_thoughts;
  return {checker.state().used, checker.state().forced, checker.state().ended_by};
}

TEST(ThinkingAutomatonProperty, BudgetsAroundTheLengthOfThinking) {
  const int64_t num_forced = 2;  // CheckerOptions forces three ids, one of them </think>
  for (const bool starts_inside : {false, true}) {
    for (int n = 0; n <= 12; ++n) {
      const Ended natural = {n, 0, ThinkingEndedBy::kNatural};
      EXPECT_EQ(ThinkAndEnd(-1, n, starts_inside), natural);
      EXPECT_EQ(ThinkAndEnd(n + 1, n, starts_inside), natural);
      // At the nth id the budget is used: the end is forced before the model can write its own.
      for (const int64_t budget : {int64_t{0}, int64_t{1}, int64_t{n} - 1, int64_t{n}}) {
        if (budget < 0 || budget > n) continue;
        EXPECT_EQ(ThinkAndEnd(budget, n, starts_inside),
                  (Ended{budget, num_forced, ThinkingEndedBy::kBudget}))
            << "budget " << budget << " for " << n;
      }
    }
  }
}

// Thinking with open characters, a call inside, a second block: somewhere in it is every state.
std::vector<uint32_t> LongScript() {
  std::vector<uint32_t> ids = {
      'x',         kThinkTag, 'a',          0xe4, 0xbd,         0xa0,     'b',
      kCallTag,    '{',       '"',          '}',  kEndCallTag,  'c',      kFirstPiece + 2,
      0xa0,        'd',       kEndThinkTag, 'A',  'B',          kCallTag, kThinkTag,
      kEndCallTag, 'C',       kThinkTag,    'e',  0xf0,         0x9f,     0x98,
      0x80,        'f',       kThinkTag,    'g',  kEndThinkTag, 'D',      'E'};
  ids.insert(ids.end(), 10, 'F');
  return ids;
}

// Runs `script` (ids that come while forced ones are due are dropped) and acts before id `when`.
template <typename Act>
AutomatonChecker RunScript(const ThinkingAutomatonOptions& options, size_t when, Act act) {
  AutomatonChecker checker(options);
  const std::vector<uint32_t> script = LongScript();
  for (size_t i = 0; i < script.size(); ++i) {
    if (i == when) act(checker);
    if (checker.must_force()) checker.Force();
    checker.Sample(script[i]);
  }
  return checker;
}

TEST(ThinkingAutomatonProperty, AMoveAtAnyPointChangesNothing) {
  for (int64_t budget = -1; budget < 14; ++budget) {
    const auto nothing = [](AutomatonChecker&) {};
    const ThinkingAutomatonOptions options = CheckerOptions(budget);
    const AutomatonChecker undisturbed = RunScript(options, 0, nothing);
    for (size_t when = 0; when < LongScript().size(); ++when) {
      const AutomatonChecker moved =
          RunScript(options, when, [](AutomatonChecker& checker) { checker.Fork(); });
      ASSERT_EQ(moved.violation(), "") << "budget " << budget << ", moved at " << when;
      ASSERT_EQ(moved.state(), undisturbed.state()) << "budget " << budget << ", at " << when;
    }
  }
}

TEST(ThinkingAutomatonProperty, AnswerNowAtAnyPointEndsEveryBlockFromThereOn) {
  for (size_t when = 0; when < LongScript().size(); ++when) {
    const AutomatonChecker checker =
        RunScript(CheckerOptions(-1), when, [](AutomatonChecker& asked) {
          const int64_t used = asked.state().used;
          const bool open = asked.must_force() || asked.state().in_tool_call ||
                            !asked.state().partial_utf8.empty() ||
                            asked.state().phase != ThinkingPhase::kThinking;
          asked.RequestFinish();
          EXPECT_TRUE(open || asked.must_force()) << "in thinking, between two characters";
          EXPECT_EQ(asked.state().used, used);
        });
    ASSERT_EQ(checker.violation(), "") << "asked at " << when;
    ASSERT_NE(checker.state().phase, ThinkingPhase::kThinking) << "asked at " << when;
  }
}

TEST(ThinkingAutomatonProperty, ANewBudgetAtAnyPointHoldsFromThereOn) {
  for (int64_t before : {-1, 0, 3, 30}) {
    for (int64_t after = -1; after < 14; ++after) {
      for (size_t when = 0; when < LongScript().size(); ++when) {
        int64_t used_then = 0;
        const AutomatonChecker checker =
            RunScript(CheckerOptions(before), when, [&](AutomatonChecker& asked) {
              used_then = asked.state().used;
              asked.SetBudget(after);
            });
        ASSERT_EQ(checker.violation(), "") << before << " to " << after << " at " << when;
        // Never below what was used, and at most a character's rest above that.
        if (after >= 0) {
          ASSERT_LE(checker.state().used, std::max(after, used_then + 3));
        }
      }
    }
  }
}

// The loop that a worker runs, against the budget alone: whatever is thought, whole characters
// only.
TEST(ThinkingAutomatonProperty, CutThinkingIsWholeUtf8WhateverTheBudget) {
  std::mt19937 random(5);
  const std::string text = "a\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x98\x80z";
  for (int64_t budget = 0; budget < 40; ++budget) {
    AutomatonChecker checker(CheckerOptions(budget));
    checker.Sample(kThinkTag);
    std::string thought;
    const auto bytes_left = [&] { return budget - checker.state().used; };
    while (!checker.must_force()) {
      // A valid text, of bytes that fit: the model of a byte vocabulary.
      const size_t lengths[] = {1, 2, 3, 4};
      const size_t offsets[] = {0, 1, 3, 6};
      const size_t pick = random() % 4;
      const std::string character = text.substr(offsets[pick], lengths[pick]);
      if (static_cast<int64_t>(character.size()) > bytes_left()) {
        checker.Sample('z');
        thought += 'z';
        continue;
      }
      for (const char byte : character) {
        ASSERT_FALSE(checker.must_force()) << "a character of " << character.size() << " was cut";
        checker.Sample(static_cast<uint8_t>(byte));
      }
      thought += character;
    }
    ASSERT_EQ(checker.violation(), "");
    EXPECT_EQ(static_cast<int64_t>(thought.size()), budget);
    EXPECT_EQ(ValidUtf8Prefix(thought), thought.size());
  }
}

}  // namespace
}  // namespace conclave
