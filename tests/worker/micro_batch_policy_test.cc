#include "worker/micro_batch_policy.h"

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

// A step of `num_tokens`, which takes as long as it is told, by whichever way the policy says.
bool Step(MicroBatchPolicy& policy, int64_t num_tokens, double whole_ms, double split_ms,
          double experts_share = 0.5) {
  const bool split = policy.Split(num_tokens);
  const absl::Duration all = absl::Milliseconds(split ? split_ms : whole_ms);
  policy.OnStep(num_tokens, {.attention = all * (1 - experts_share) / 2,
                             .mlp = all * (1 - experts_share) / 2,
                             .experts = all * experts_share,
                             .split = split});
  return split;
}

int SplitsOf(MicroBatchPolicy& policy, int steps, int64_t num_tokens, double whole_ms,
             double split_ms, double experts_share = 0.5) {
  int splits = 0;
  for (int i = 0; i < steps; ++i) {
    splits += Step(policy, num_tokens, whole_ms, split_ms, experts_share) ? 1 : 0;
  }
  return splits;
}

TEST(MicroBatchPolicyTest, ModesHaveNames) {
  for (const auto& [name, mode] :
       {std::pair("auto", MicroBatchMode::kAuto), std::pair("off", MicroBatchMode::kOff),
        std::pair("on", MicroBatchMode::kOn)}) {
    ASSERT_OK_AND_ASSIGN(const MicroBatchMode parsed, ParseMicroBatchMode(name));
    EXPECT_EQ(parsed, mode);
  }
  EXPECT_THAT(ParseMicroBatchMode("sometimes"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       testing::HasSubstr("micro_batch is sometimes, want auto, off or on")));
}

TEST(MicroBatchPolicyTest, OffNeverAndOnAlwaysWhereThereAreTwoTokens) {
  MicroBatchPolicy off(MicroBatchMode::kOff), on(MicroBatchMode::kOn);
  EXPECT_EQ(SplitsOf(off, 1000, 16, /*whole_ms=*/10, /*split_ms=*/1), 0);
  EXPECT_EQ(SplitsOf(on, 1000, 16, /*whole_ms=*/1, /*split_ms=*/10), 1000);
  EXPECT_EQ(SplitsOf(on, 1000, 1, 1, 1), 0);
}

TEST(MicroBatchPolicyTest, OneTokenCannotBeSplit) {
  MicroBatchPolicy policy(MicroBatchMode::kAuto);
  EXPECT_EQ(SplitsOf(policy, 1000, 1, 10, 1), 0);
}

TEST(MicroBatchPolicyTest, TakesTheFasterWayAndTriesTheOtherMoreAndMoreRarely) {
  MicroBatchPolicy gains(MicroBatchMode::kAuto), loses(MicroBatchMode::kAuto);
  // Of 10,000 steps: one trial at first, then after 120, 240, 480, .. 3840 and 4096 others.
  const int gained = SplitsOf(gains, 10000, 16, /*whole_ms=*/3, /*split_ms=*/2);
  const int lost = SplitsOf(loses, 10000, 16, /*whole_ms=*/2, /*split_ms=*/3);
  EXPECT_GT(gained, 9900);
  EXPECT_LT(gained, 10000) << "the other way is not tried any more";
  EXPECT_LT(lost, 100);
  EXPECT_GT(lost, MicroBatchPolicy::kTrialSteps) << "the split is not tried any more";
}

TEST(MicroBatchPolicyTest, FollowsWhatChanges) {
  MicroBatchPolicy policy(MicroBatchMode::kAuto);
  SplitsOf(policy, 200, 16, 2, 3);
  EXPECT_FALSE(policy.Split(16));
  SplitsOf(policy, 1000, 16, 3, 2);  // as when a neighbour's load goes away
  EXPECT_TRUE(policy.Split(16));
  SplitsOf(policy, 1000, 16, 2, 3);
  EXPECT_FALSE(policy.Split(16));
}

TEST(MicroBatchPolicyTest, SizesAreJudgedApart) {
  MicroBatchPolicy policy(MicroBatchMode::kAuto);
  for (int i = 0; i < 100; ++i) {
    Step(policy, 2, 2, 3);
    Step(policy, 64, 3, 2);
  }
  EXPECT_FALSE(policy.Split(2));
  EXPECT_TRUE(policy.Split(64));
  EXPECT_TRUE(policy.Split(70)) << "about as many as 64";
  EXPECT_FALSE(policy.Split(512)) << "nothing is known of it";
}

TEST(MicroBatchPolicyTest, TriesNothingWhereNothingCanBeHidden) {
  MicroBatchPolicy policy(MicroBatchMode::kAuto);
  EXPECT_EQ(SplitsOf(policy, 10000, 16, 3, 2, /*experts_share=*/0.02), 0);
  EXPECT_EQ(SplitsOf(policy, 10000, 32, 3, 2, /*experts_share=*/0.99), 0);
}

TEST(MicroBatchPolicyTest, OneStepThatWaitedTurnsNothing) {
  MicroBatchPolicy policy(MicroBatchMode::kAuto);
  SplitsOf(policy, 100, 16, 2, 3);
  Step(policy, 16, /*whole_ms=*/30000, /*split_ms=*/30000);  // a shard was lost and came back
  SplitsOf(policy, 100, 16, 2, 3);
  EXPECT_FALSE(policy.Split(16));
}

}  // namespace
}  // namespace conclave
