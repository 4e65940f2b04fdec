#include "worker/thinking_automaton.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// A vocabulary of single bytes (ids 0..255) and a few control tokens without bytes.
constexpr uint32_t kThink = 256, kEndThink = 257, kToolCall = 258, kEndToolCall = 259;
constexpr uint32_t kNumIds = 260;

absl::string_view ByteOf(uint32_t id) {
  static const std::string* const bytes = [] {
    auto* all = new std::string;
    for (int i = 0; i < 256; ++i) all->push_back(static_cast<char>(i));
    return all;
  }();
  return id < 256 ? absl::string_view(bytes->data() + id, 1) : absl::string_view();
}

ThinkingAutomatonOptions Options(int64_t budget) {
  ThinkingAutomatonOptions options;
  options.enabled = true;
  options.start_id = kThink;
  options.end_id = kEndThink;
  options.budget = budget;
  options.forced_ids = {'.', kEndThink, '\n'};
  options.max_tokens = 1000;
  options.tool_call_start_id = kToolCall;
  options.tool_call_end_id = kEndToolCall;
  return options;
}

ThinkingAutomaton After(ThinkingAutomatonOptions options, const std::vector<uint32_t>& ids) {
  ThinkingAutomaton automaton(std::move(options), ByteOf);
  for (uint32_t id : ids) automaton.OnSampled(id);
  return automaton;
}

TEST(Utf8TailTest, FindsOnlyWhatCanStillBecomeACharacter) {
  EXPECT_EQ(IncompleteUtf8Tail("abc"), "");
  EXPECT_EQ(IncompleteUtf8Tail("a\xe4\xbd"), "\xe4\xbd");
  EXPECT_EQ(IncompleteUtf8Tail("a\xe4\xbd\xa0"), "");
  EXPECT_EQ(IncompleteUtf8Tail("\xf0\x9f\x98"), "\xf0\x9f\x98");
  EXPECT_EQ(IncompleteUtf8Tail("\xe0\x80"), "");      // overlong: never valid
  EXPECT_EQ(IncompleteUtf8Tail("\xed\xa0"), "");      // surrogate
  EXPECT_EQ(IncompleteUtf8Tail("\xf4\x90"), "");      // above U+10FFFF
  EXPECT_EQ(IncompleteUtf8Tail("\x80\x80"), "");      // continuation bytes alone
  EXPECT_EQ(IncompleteUtf8Tail("\xe4\xe4"), "\xe4");  // the first is broken, the second open
  EXPECT_EQ(MissingUtf8Bytes("\xe4"), 2);
  EXPECT_EQ(MissingUtf8Bytes("\xf0\x9f\x98"), 1);
  EXPECT_EQ(MissingUtf8Bytes(""), 0);
}

TEST(ThinkingAutomatonTest, NaturalEndNeverForces) {
  const ThinkingAutomaton automaton = After(Options(2), {kThink, 'a', kEndThink, 'b', 'c', 'd'});
  EXPECT_FALSE(automaton.must_force());
  EXPECT_EQ(automaton.state().phase, ThinkingPhase::kAnswer);
  EXPECT_EQ(automaton.state().ended_by, ThinkingEndedBy::kNatural);
  EXPECT_EQ(automaton.state().used, 1);
  EXPECT_EQ(automaton.state().forced, 0);
}

TEST(ThinkingAutomatonTest, ForcesAtTheBudgetAndNotBefore) {
  ThinkingAutomaton automaton = After(Options(2), {'x', kThink, 'a'});
  EXPECT_FALSE(automaton.must_force());
  automaton.OnSampled('b');
  ASSERT_TRUE(automaton.must_force());
  EXPECT_THAT(automaton.forced_ids(), ElementsAre('.', kEndThink, '\n'));
  automaton.OnForced();
  EXPECT_EQ(automaton.state().ended_by, ThinkingEndedBy::kBudget);
  EXPECT_EQ(automaton.state().used, 2);
  EXPECT_EQ(automaton.state().forced, 2);  // the end id is not counted
  automaton.OnSampled('c');
  EXPECT_FALSE(automaton.must_force());
}

TEST(ThinkingAutomatonTest, EndAtTheBudgetItselfIsForcedBeforeTheModelCanSpeak) {
  // n - 1 ids and a natural end stay natural; the nth id forces.
  EXPECT_EQ(After(Options(3), {kThink, 'a', 'b', kEndThink}).state().ended_by,
            ThinkingEndedBy::kNatural);
  EXPECT_EQ(After(Options(3), {kThink, 'a', 'b', 'c'}).state().ended_by, ThinkingEndedBy::kBudget);
}

TEST(ThinkingAutomatonTest, BudgetZeroForcesRightAfterTheStart) {
  EXPECT_TRUE(After(Options(0), {kThink}).must_force());
  EXPECT_FALSE(After(Options(0), {'a', 'b'}).must_force());
}

TEST(ThinkingAutomatonTest, UnlimitedNeverForces) {
  ThinkingAutomaton automaton = After(Options(-1), {kThink});
  for (int i = 0; i < 5000; ++i) automaton.OnSampled('a');
  EXPECT_FALSE(automaton.must_force());
  EXPECT_EQ(automaton.state().used, 5000);
}

TEST(ThinkingAutomatonTest, StartsInsideWhenThePromptDoes) {
  ThinkingAutomatonOptions options = Options(1);
  options.starts_inside = true;
  EXPECT_TRUE(After(options, {'a'}).must_force());
  options.budget = 0;
  EXPECT_TRUE(After(options, {}).must_force());
}

TEST(ThinkingAutomatonTest, ReentryGoesOnWithWhatIsLeft) {
  ThinkingAutomaton automaton = After(Options(3), {kThink, 'a', 'b', kEndThink, 'x', kThink});
  EXPECT_EQ(automaton.state().phase, ThinkingPhase::kThinking);
  EXPECT_EQ(automaton.state().ended_by, ThinkingEndedBy::kNone);
  automaton.OnSampled('c');
  EXPECT_TRUE(automaton.must_force());
  EXPECT_EQ(automaton.state().used, 3);
}

TEST(ThinkingAutomatonTest, ReentryAfterAForcedEndIsClosedAtOnce) {
  ThinkingAutomaton automaton = After(Options(1), {kThink, 'a'});
  automaton.OnForced();
  automaton.OnSampled(kThink);
  EXPECT_TRUE(automaton.must_force());
  EXPECT_EQ(automaton.state().used, 1);
}

TEST(ThinkingAutomatonTest, AnswerReserveEndsThinkingInTime) {
  ThinkingAutomatonOptions options = Options(-1);
  options.max_tokens = 20;
  options.answer_reserve = 5;
  ThinkingAutomaton automaton = After(options, {kThink});
  int64_t generated = 1;
  while (!automaton.must_force()) {
    automaton.OnSampled('a');
    ++generated;
  }
  EXPECT_EQ(automaton.state().ended_by, ThinkingEndedBy::kAnswerReserve);
  // 3 forced ids and the reserve of 5 fill max_tokens exactly.
  EXPECT_EQ(generated + 3 + 5, 20);
}

TEST(ThinkingAutomatonTest, NeverForcesInsideAToolCall) {
  ThinkingAutomaton automaton = After(Options(2), {kThink, 'a', kToolCall, '{', '1', '}'});
  EXPECT_FALSE(automaton.must_force());
  EXPECT_EQ(automaton.state().used, 1) << "a call is not thinking";
  automaton.RequestFinish();
  EXPECT_FALSE(automaton.must_force());
  automaton.OnSampled(kEndToolCall);
  EXPECT_TRUE(automaton.must_force());
  EXPECT_EQ(automaton.state().ended_by, ThinkingEndedBy::kClient);
}

TEST(ThinkingAutomatonTest, ThinkTagInsideAToolCallOfTheAnswerIsText) {
  const ThinkingAutomaton automaton = After(Options(0), {'a', kToolCall, kThink});
  EXPECT_FALSE(automaton.must_force());
}

TEST(ThinkingAutomatonTest, ClientFinishWaitsForTheCharacter) {
  ThinkingAutomaton automaton = After(Options(-1), {kThink, 0xe4, 0xbd});
  automaton.RequestFinish();
  EXPECT_FALSE(automaton.must_force());
  automaton.OnSampled(0xa0);
  EXPECT_TRUE(automaton.must_force());
  EXPECT_EQ(automaton.state().ended_by, ThinkingEndedBy::kClient);
}

TEST(ThinkingAutomatonTest, ClientFinishBeforeThinkingHoldsForWhenItOpens) {
  ThinkingAutomaton automaton = After(Options(-1), {'x'});
  automaton.RequestFinish();
  EXPECT_FALSE(automaton.must_force());
  automaton.OnSampled(kThink);
  EXPECT_TRUE(automaton.must_force());
}

TEST(ThinkingAutomatonTest, BudgetCanChangeInFlightButNotBelowWhatIsUsed) {
  ThinkingAutomaton automaton = After(Options(100), {kThink, 'a', 'b', 'c'});
  automaton.SetBudget(1);
  EXPECT_TRUE(automaton.must_force());
  EXPECT_EQ(automaton.state().budget, 3);
  EXPECT_EQ(automaton.state().used, 3);

  ThinkingAutomaton raised = After(Options(2), {kThink, 'a'});
  raised.SetBudget(-1);
  for (int i = 0; i < 50; ++i) raised.OnSampled('a');
  EXPECT_FALSE(raised.must_force());
}

TEST(ThinkingAutomatonTest, ForbidsWhatCouldNotBeCompletedInTheBudget) {
  const std::vector<uint32_t> splitting = IdsThatSplitCharacters(ByteOf, kNumIds);
  EXPECT_EQ(splitting.size(), 128);  // every byte from 0x80 on
  EXPECT_THAT(After(Options(10), {kThink}).ForbiddenIds(splitting), IsEmpty());
  const std::vector<uint32_t> last = After(Options(1), {kThink}).ForbiddenIds(splitting);
  EXPECT_EQ(last.size(), 0xf4 - 0xc2 + 1) << "with one id left no character may begin";
  const std::vector<uint32_t> two = After(Options(2), {kThink}).ForbiddenIds(splitting);
  EXPECT_EQ(two.size(), 0xf4 - 0xe0 + 1) << "two-byte characters still fit";
}

TEST(ThinkingAutomatonTest, SnapshotContinuesElsewhere) {
  ThinkingAutomaton first = After(Options(3), {kThink, 'a', 0xc3});
  ThinkingAutomaton second(Options(3), ByteOf);
  second.Restore(first.state(), 3);
  first.OnSampled(0xa9);
  second.OnSampled(0xa9);
  EXPECT_EQ(first.state(), second.state());
  EXPECT_TRUE(second.must_force());
}

TEST(ThinkingAutomatonTest, DisabledSeesNothing) {
  ThinkingAutomatonOptions options = Options(0);
  options.enabled = false;
  ThinkingAutomaton automaton = After(options, {kThink, 'a'});
  automaton.RequestFinish();
  EXPECT_FALSE(automaton.must_force());
  EXPECT_EQ(automaton.state(), [] {
    ThinkingSnapshot untouched;
    untouched.budget = 0;
    return untouched;
  }());
}

TEST(ThinkingAutomatonTest, AClosingTagThatClosesNothingIsCounted) {
  const ThinkingAutomaton automaton = After(Options(2), {kThink, kEndToolCall, kEndToolCall});
  EXPECT_EQ(automaton.state().used, 2);
  EXPECT_TRUE(automaton.must_force());
}

ThinkingAutomatonOptions WithPrefix(int64_t budget) {
  ThinkingAutomatonOptions options = Options(budget);
  options.answer_prefix_ids = {kToolCall, '{'};
  options.answer_separator_ids = {'\n'};
  return options;
}

TEST(ThinkingAutomatonTest, AnAnswersPrefixIsForcedOnceWhereTheAnswerBegins) {
  // No thinking: at once.
  ThinkingAutomaton off(WithPrefix(-1), ByteOf);
  ASSERT_TRUE(off.must_force());
  EXPECT_THAT(off.forced_ids(), ElementsAre(kToolCall, '{'));
  off.OnForced();
  EXPECT_TRUE(off.state().in_tool_call);
  EXPECT_EQ(off.state().forced, 0);

  ThinkingAutomatonOptions options = WithPrefix(2);
  options.starts_inside = true;
  ThinkingAutomaton natural = After(options, {'a', kEndThink});
  ASSERT_TRUE(natural.must_force());
  EXPECT_THAT(natural.forced_ids(), ElementsAre('\n', kToolCall, '{'));
  natural.OnForced();
  EXPECT_EQ(natural.state().ended_by, ThinkingEndedBy::kNatural);
  EXPECT_EQ(natural.state().forced, 0);
  // A second block ends without a second prefix.
  for (const uint32_t id : {uint32_t{'}'}, kEndToolCall, kThink, kEndThink}) natural.OnSampled(id);
  EXPECT_FALSE(natural.must_force());

  ThinkingAutomaton cut = After(options, {'a', 'b'});
  ASSERT_TRUE(cut.must_force());
  EXPECT_THAT(cut.forced_ids(), ElementsAre('.', kEndThink, '\n', kToolCall, '{'));
  // Whoever takes over forces the same.
  ThinkingAutomaton other(options, ByteOf);
  other.Restore(cut.state(), 2);
  EXPECT_THAT(other.forced_ids(), ElementsAre('.', kEndThink, '\n', kToolCall, '{'));
  cut.OnForced();
  EXPECT_EQ(cut.state().forced, 2);
  EXPECT_EQ(cut.state().ended_by, ThinkingEndedBy::kBudget);
}

// Random ids, some of them control tokens, against every invariant after each one.
TEST(ThinkingAutomatonTest, InvariantsHoldForRandomStreams) {
  const std::vector<uint32_t> splitting = IdsThatSplitCharacters(ByteOf, kNumIds);
  std::mt19937 random(20261123);
  for (int round = 0; round < 3000; ++round) {
    ThinkingAutomatonOptions options = Options(static_cast<int64_t>(random() % 14) - 1);
    options.max_tokens = 60;
    options.answer_reserve = round % 2 == 0 ? 8 : 0;
    ThinkingAutomaton automaton(options, ByteOf);
    std::string thinking_bytes;
    int64_t generated = 0, entered = 0;
    bool called = false;  // a tool call in this block may run past the reserve
    while (generated < options.max_tokens) {
      if (automaton.must_force()) {
        EXPECT_EQ(IncompleteUtf8Tail(thinking_bytes), "") << "cut a character in two";
        EXPECT_FALSE(automaton.state().in_tool_call);
        EXPECT_NE(automaton.state().ended_by, ThinkingEndedBy::kNatural);
        automaton.OnForced();
        generated += static_cast<int64_t>(options.forced_ids.size());
        thinking_bytes.clear();
        if (automaton.state().ended_by == ThinkingEndedBy::kAnswerReserve && !called) {
          // A block opened inside the reserve is closed at once.
          const int64_t at_once = entered + static_cast<int64_t>(options.forced_ids.size());
          EXPECT_LE(generated, std::max(options.max_tokens - options.answer_reserve, at_once));
        }
        continue;
      }
      const std::vector<uint32_t> forbidden = automaton.ForbiddenIds(splitting);
      uint32_t id = random() % 4 == 0 ? 256 + random() % 4 : random() % 256;
      while (std::find(forbidden.begin(), forbidden.end(), id) != forbidden.end()) {
        id = random() % kNumIds;
      }
      const bool was_thinking = automaton.state().phase == ThinkingPhase::kThinking;
      automaton.OnSampled(id);
      ++generated;
      if (id == kThink && !was_thinking) {
        thinking_bytes.clear();
        entered = generated;
        called = false;
      }
      called |= automaton.state().in_tool_call;
      if (id >= 256) thinking_bytes.clear();  // a control token ends any open character
      if (was_thinking) thinking_bytes.append(ByteOf(id).data(), ByteOf(id).size());
      if (random() % 40 == 0) automaton.RequestFinish();
      if (random() % 40 == 0) automaton.SetBudget(static_cast<int64_t>(random() % 12));
      if (automaton.state().budget >= 0) {
        ASSERT_LE(automaton.state().used, automaton.state().budget);
      }
    }
  }
}

}  // namespace
}  // namespace conclave
