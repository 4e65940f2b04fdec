#include "worker/step_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class FakeSink : public TokenSink {
 public:
  void OnEvent(v1::TokenEvent) override {}
  void OnDone(const absl::Status&) override {}
  bool Writable() const override { return writable; }
  bool Cancelled() const override { return false; }
  bool writable = true;
};

class StepPlannerTest : public testing::Test {
 protected:
  Sequence* Make(int num_tokens) {
    auto sequence = std::make_unique<Sequence>();
    sequence->arrival = sequences_.size();
    // No two prompts are alike.
    sequence->tokens.assign(num_tokens, static_cast<uint32_t>(1000 + sequences_.size()));
    sequence->num_prompt = num_tokens;
    sequence->sink = std::make_shared<FakeSink>();
    sequences_.push_back(std::move(sequence));
    return sequences_.back().get();
  }

  // What the engine does after a step: KV is there, and complete sequences get one more token.
  static void Apply(StepPlanner& planner, const std::vector<PlannedSequence>& plan) {
    for (const PlannedSequence& planned : plan) {
      planner.OnComputed(planned.sequence, planned.num_tokens);
      if (planned.sequence->num_pending() == 0) planned.sequence->tokens.push_back(2);
    }
  }

  static std::vector<std::pair<uint64_t, int64_t>> Shares(
      const std::vector<PlannedSequence>& plan) {
    std::vector<std::pair<uint64_t, int64_t>> shares;
    for (const PlannedSequence& planned : plan) {
      shares.emplace_back(planned.sequence->arrival, planned.num_tokens);
    }
    return shares;
  }

  std::vector<std::unique_ptr<Sequence>> sequences_;
};

TEST_F(StepPlannerTest, PrefillsInChunksAndDecodesFirst) {
  BlockPool blocks(100, /*keep_prefixes=*/true);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 32}, blocks);
  planner.Add(Make(10));
  auto plan = planner.Plan();
  EXPECT_THAT(Shares(plan), ElementsAre(std::pair(0, 10)));
  Apply(planner, plan);
  planner.Add(Make(50));
  plan = planner.Plan();
  EXPECT_THAT(Shares(plan), ElementsAre(std::pair(0, 1), std::pair(1, 31)));
  Apply(planner, plan);
  plan = planner.Plan();
  EXPECT_THAT(Shares(plan), ElementsAre(std::pair(0, 1), std::pair(1, 19)));
}

TEST_F(StepPlannerTest, AllocatesBlocksAsTokensCome) {
  BlockPool blocks(100, /*keep_prefixes=*/true);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 64}, blocks);
  Sequence* sequence = Make(16);
  planner.Add(sequence);
  Apply(planner, planner.Plan());
  EXPECT_EQ(sequence->block_table.size(), 1);
  Apply(planner, planner.Plan());  // token 17
  EXPECT_EQ(sequence->block_table.size(), 2);
  planner.Remove(sequence);
  EXPECT_EQ(blocks.num_free(), 100);
}

TEST_F(StepPlannerTest, PreemptsTheLatestArrivalAndKeepsItsTokens) {
  BlockPool blocks(5, /*keep_prefixes=*/true);  // 80 tokens
  StepPlanner planner({.max_running = 8, .max_step_tokens = 64}, blocks);
  Sequence* first = Make(30);
  Sequence* second = Make(30);
  planner.Add(first);
  planner.Add(second);
  Apply(planner, planner.Plan());
  ASSERT_EQ(planner.running().size(), 2);
  for (int step = 0; step < 10; ++step) Apply(planner, planner.Plan());
  EXPECT_EQ(planner.num_preemptions(), 1);
  EXPECT_THAT(planner.running(), ElementsAre(first));
  EXPECT_THAT(planner.waiting(), ElementsAre(second));
  EXPECT_EQ(second->num_computed, 0);
  EXPECT_GT(second->tokens.size(), 30);
  EXPECT_THAT(second->block_table, IsEmpty());
}

TEST_F(StepPlannerTest, TheEarliestAlwaysAdvancesUntilAllFinish) {
  BlockPool blocks(6, /*keep_prefixes=*/true);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 24}, blocks);
  std::vector<Sequence*> left;
  for (int i = 0; i < 6; ++i) {
    left.push_back(Make(7 + 9 * i));
    planner.Add(left.back());
  }
  int steps = 0;
  while (!left.empty()) {
    ASSERT_LT(++steps, 1000) << "no progress";
    Apply(planner, planner.Plan());
    std::erase_if(left, [&](Sequence* sequence) {
      if (sequence->tokens.size() < 80) return false;
      planner.Remove(sequence);
      return true;
    });
  }
  EXPECT_EQ(blocks.num_free(), 6);
}

TEST_F(StepPlannerTest, SlowReaderPausesAndOthersGoOn) {
  BlockPool blocks(100, /*keep_prefixes=*/true);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 64}, blocks);
  Sequence* slow = Make(4);
  Sequence* quick = Make(4);
  planner.Add(slow);
  planner.Add(quick);
  Apply(planner, planner.Plan());
  static_cast<FakeSink&>(*slow->sink).writable = false;
  EXPECT_THAT(Shares(planner.Plan()), ElementsAre(std::pair(1, 1)));
}

TEST_F(StepPlannerTest, RunsAtMostMaxRunning) {
  BlockPool blocks(100, /*keep_prefixes=*/true);
  StepPlanner planner({.max_running = 2, .max_step_tokens = 64}, blocks);
  for (int i = 0; i < 4; ++i) planner.Add(Make(3));
  EXPECT_EQ(planner.Plan().size(), 2);
  EXPECT_EQ(planner.waiting().size(), 2);
}

TEST_F(StepPlannerTest, AShortPromptDoesNotWaitForALongOne) {
  BlockPool blocks(4000, /*keep_prefixes=*/true);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 512}, blocks);
  Sequence* long_one = Make(30000);
  planner.Add(long_one);
  Apply(planner, planner.Plan());
  Sequence* short_one = Make(200);
  planner.Add(short_one);
  Apply(planner, planner.Plan());
  EXPECT_EQ(short_one->num_generated(), 1) << "its first token came in the step after it did";
  EXPECT_GE(long_one->num_computed, 512 + 256 - 16);
}

TEST_F(StepPlannerTest, ShortPromptsDoNotStarveALongOne) {
  BlockPool blocks(4000, /*keep_prefixes=*/true);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 512}, blocks);
  Sequence* long_one = Make(30000);
  planner.Add(long_one);
  int steps = 0;
  while (long_one->num_generated() == 0) {
    ASSERT_LE(++steps, 2 * 30000 / (512 - 512 / 8 - 2 * 16) + 1);
    for (int i = 0; i < 4; ++i) planner.Add(Make(400));  // more than a step takes, every step
    Apply(planner, planner.Plan());
    for (const auto& sequence : sequences_) {
      if (sequence.get() != long_one && sequence->num_generated() > 0) {
        planner.Remove(sequence.get());
      }
    }
  }
}

TEST_F(StepPlannerTest, TheQueuesHeadIsOvertakenABoundedNumberOfTimes) {
  BlockPool blocks(64, /*keep_prefixes=*/true);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 512}, blocks);
  Sequence* holder = Make(500);
  planner.Add(holder);
  Apply(planner, planner.Plan());
  Sequence* big = Make(900);  // has to wait until `holder` is done
  planner.Add(big);
  int overtakers = 0;
  for (int step = 0; step < 20; ++step) {
    Sequence* small = Make(10);
    planner.Add(small);
    Apply(planner, planner.Plan());
    if (small->num_generated() == 0) continue;
    ++overtakers;
    planner.Remove(small);
  }
  EXPECT_EQ(overtakers, StepPlanner::kMaxOvertakes);
  EXPECT_EQ(planner.waiting().front(), big);
  planner.Remove(holder);
  Apply(planner, planner.Plan());
  EXPECT_GT(big->num_computed, 0);
}

TEST_F(StepPlannerTest, DecodesLeaveRoomForPromptsAndTakeTurns) {
  BlockPool blocks(1000, /*keep_prefixes=*/true);
  StepPlanner planner({.max_running = 64, .max_step_tokens = 16}, blocks);
  for (int i = 0; i < 40; ++i) planner.Add(Make(1));
  for (int step = 0; step < 20; ++step) Apply(planner, planner.Plan());
  Sequence* prompt = Make(100);
  planner.Add(prompt);
  std::vector<size_t> before;
  for (const auto& sequence : sequences_) before.push_back(sequence->tokens.size());
  for (int step = 0; step < 30; ++step) Apply(planner, planner.Plan());
  EXPECT_GE(prompt->num_computed, 30 * 2 - 1);
  for (size_t i = 0; i + 1 < sequences_.size(); ++i) {
    // 30 steps of 14 decodes for 40 sequences: 10.5 each.
    EXPECT_NEAR(static_cast<double>(sequences_[i]->tokens.size() - before[i]), 10.5, 1.5) << i;
  }
}

TEST_F(StepPlannerTest, ASecondSequenceWithTheSamePromptSkipsWhatTheFirstComputed) {
  BlockPool blocks(1000, /*keep_prefixes=*/true);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 128}, blocks);
  Sequence* first = Make(1000);
  Sequence* second = Make(1000);
  second->tokens = first->tokens;
  planner.Add(first);
  planner.Add(second);
  int64_t rows = 0;
  while (second->num_generated() == 0) {
    const auto plan = planner.Plan();
    ASSERT_FALSE(plan.empty());
    for (const PlannedSequence& planned : plan) rows += planned.num_tokens;
    Apply(planner, plan);
  }
  EXPECT_LT(rows, 1000 + 2 * 128);
  EXPECT_EQ(planner.prefix_cache().queried, 2 * 62);
  EXPECT_GT(planner.prefix_cache().hit, 54);
}

TEST_F(StepPlannerTest, ABackgroundSequenceRunsOnlyWhileThereIsNoOther) {
  BlockPool blocks(100, /*keep_prefixes=*/true);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 64}, blocks);
  Sequence* background = Make(100);
  background->background = true;
  planner.Add(background);
  auto plan = planner.Plan();
  EXPECT_THAT(Shares(plan), ElementsAre(std::pair(0, 32)));
  Apply(planner, plan);
  Sequence* real = Make(5);
  planner.Add(real);
  EXPECT_THAT(Shares(planner.Plan()), ElementsAre(std::pair(1, 5)));
  planner.Remove(real);
  EXPECT_THAT(Shares(planner.Plan()), ElementsAre(std::pair(0, 32)));
}

// Random arrivals on a pool that is far too small for all of them: each step keeps to its bounds,
// and every sequence finishes.
TEST_F(StepPlannerTest, WhateverComesKeepsToTheBoundsAndFinishes) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto pick = [&](int least, int most) {
      return std::uniform_int_distribution<int>(least, most)(random);
    };
    const int num_blocks = pick(8, 60);
    const int max_running = pick(1, 12);
    const int max_step_tokens = pick(1, 200);
    BlockPool blocks(num_blocks, /*keep_prefixes=*/seed % 2 == 0);
    StepPlanner planner({.max_running = max_running, .max_step_tokens = max_step_tokens}, blocks);
    sequences_.clear();
    std::vector<std::pair<Sequence*, size_t>> left;  // with the length it ends at
    int to_come = 40;
    int64_t work = 0;
    for (int steps = 0; to_come > 0 || !left.empty(); ++steps) {
      // Each token is computed at least once; preemption and waiting cost a bounded multiple.
      ASSERT_LT(steps, 200 + 20 * work) << "no progress";
      if (to_come > 0 && pick(0, 2) == 0) {
        const int length = pick(0, 3) == 0 ? pick(1, num_blocks * 16 - 20) : pick(1, 40);
        Sequence* sequence = Make(length);
        if (pick(0, 1) == 0) sequence->tokens.assign(length, 7);  // many prompts are alike
        left.emplace_back(sequence, length + pick(1, 20));
        work += static_cast<int64_t>(left.back().second);
        planner.Add(sequence);
        --to_come;
      }
      const auto plan = planner.Plan();
      ASSERT_TRUE(!plan.empty() || left.empty());
      int64_t rows = 0;
      for (const PlannedSequence& planned : plan) {
        rows += planned.num_tokens;
        ASSERT_GT(planned.num_tokens, 0);
        ASSERT_LE(planned.num_tokens, planned.sequence->num_pending());
        ASSERT_GE(static_cast<int64_t>(planned.sequence->block_table.size()) * 16,
                  planned.sequence->num_computed + planned.num_tokens);
      }
      ASSERT_LE(rows, max_step_tokens);
      ASSERT_LE(planner.running().size(), static_cast<size_t>(max_running));
      for (const auto& sequence : sequences_) ASSERT_LE(sequence->num_overtakes, 4);
      Apply(planner, plan);
      std::erase_if(left, [&](const auto& entry) {
        if (entry.first->tokens.size() < entry.second) return false;
        planner.Remove(entry.first);
        return true;
      });
    }
    EXPECT_EQ(blocks.num_free(), num_blocks);
  }
}

}  // namespace
}  // namespace conclave
