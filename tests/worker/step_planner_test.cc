#include "worker/step_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

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
    sequence->tokens.assign(num_tokens, 1);
    sequence->num_prompt = num_tokens;
    sequence->sink = std::make_shared<FakeSink>();
    sequences_.push_back(std::move(sequence));
    return sequences_.back().get();
  }

  // What the engine does after a step: KV is there, and complete sequences get one more token.
  static void Apply(const std::vector<PlannedSequence>& plan) {
    for (const PlannedSequence& planned : plan) {
      planned.sequence->num_computed += planned.num_tokens;
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
  BlockPool blocks(100);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 32}, blocks);
  planner.Add(Make(10));
  auto plan = planner.Plan();
  EXPECT_THAT(Shares(plan), ElementsAre(std::pair(0, 10)));
  Apply(plan);
  planner.Add(Make(50));
  plan = planner.Plan();
  EXPECT_THAT(Shares(plan), ElementsAre(std::pair(0, 1), std::pair(1, 31)));
  Apply(plan);
  plan = planner.Plan();
  EXPECT_THAT(Shares(plan), ElementsAre(std::pair(0, 1), std::pair(1, 19)));
}

TEST_F(StepPlannerTest, AllocatesBlocksAsTokensCome) {
  BlockPool blocks(100);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 64}, blocks);
  Sequence* sequence = Make(16);
  planner.Add(sequence);
  Apply(planner.Plan());
  EXPECT_EQ(sequence->block_table.size(), 1);
  Apply(planner.Plan());  // token 17
  EXPECT_EQ(sequence->block_table.size(), 2);
  planner.Remove(sequence);
  EXPECT_EQ(blocks.num_free(), 100);
}

TEST_F(StepPlannerTest, PreemptsTheLatestArrivalAndKeepsItsTokens) {
  BlockPool blocks(5);  // 80 tokens
  StepPlanner planner({.max_running = 8, .max_step_tokens = 64}, blocks);
  Sequence* first = Make(30);
  Sequence* second = Make(30);
  planner.Add(first);
  planner.Add(second);
  Apply(planner.Plan());
  ASSERT_EQ(planner.running().size(), 2);
  for (int step = 0; step < 10; ++step) Apply(planner.Plan());
  EXPECT_EQ(planner.num_preemptions(), 1);
  EXPECT_THAT(planner.running(), ElementsAre(first));
  EXPECT_THAT(planner.waiting(), ElementsAre(second));
  EXPECT_EQ(second->num_computed, 0);
  EXPECT_GT(second->tokens.size(), 30);
  EXPECT_THAT(second->block_table, IsEmpty());
}

TEST_F(StepPlannerTest, TheEarliestAlwaysAdvancesUntilAllFinish) {
  BlockPool blocks(6);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 24}, blocks);
  std::vector<Sequence*> left;
  for (int i = 0; i < 6; ++i) {
    left.push_back(Make(7 + 9 * i));
    planner.Add(left.back());
  }
  int steps = 0;
  while (!left.empty()) {
    ASSERT_LT(++steps, 1000) << "no progress";
    Apply(planner.Plan());
    std::erase_if(left, [&](Sequence* sequence) {
      if (sequence->tokens.size() < 80) return false;
      planner.Remove(sequence);
      return true;
    });
  }
  EXPECT_EQ(blocks.num_free(), 6);
}

TEST_F(StepPlannerTest, SlowReaderPausesAndOthersGoOn) {
  BlockPool blocks(100);
  StepPlanner planner({.max_running = 8, .max_step_tokens = 64}, blocks);
  Sequence* slow = Make(4);
  Sequence* quick = Make(4);
  planner.Add(slow);
  planner.Add(quick);
  Apply(planner.Plan());
  static_cast<FakeSink&>(*slow->sink).writable = false;
  EXPECT_THAT(Shares(planner.Plan()), ElementsAre(std::pair(1, 1)));
}

TEST_F(StepPlannerTest, RunsAtMostMaxRunning) {
  BlockPool blocks(100);
  StepPlanner planner({.max_running = 2, .max_step_tokens = 64}, blocks);
  for (int i = 0; i < 4; ++i) planner.Add(Make(3));
  EXPECT_EQ(planner.Plan().size(), 2);
  EXPECT_EQ(planner.waiting().size(), 2);
}

TEST(BlockPoolTest, LowestFirstAndAllOrNothing) {
  BlockPool pool(3);
  std::vector<int32_t> a, b;
  EXPECT_TRUE(pool.Allocate(2, a));
  EXPECT_THAT(a, ElementsAre(0, 1));
  EXPECT_FALSE(pool.Allocate(2, b));
  EXPECT_THAT(b, IsEmpty());
  pool.Free(a);
  EXPECT_TRUE(pool.Allocate(3, b));
  EXPECT_THAT(b, ElementsAre(0, 1, 2));
}

}  // namespace
}  // namespace conclave
