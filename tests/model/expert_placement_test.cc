#include "model/expert_placement.h"

#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(ExpertPlacementTest, ShardsCoverAllExpertsInBalancedRanges) {
  for (const int num_experts : {0, 1, 7, 8, 128}) {
    for (const int num_shards : {1, 2, 3, 5, 8, 130}) {
      std::vector<int> all;
      for (int shard = 0; shard < num_shards; ++shard) {
        const std::vector<int> experts = ExpertsOfShard(num_experts, num_shards, shard);
        EXPECT_GE(static_cast<int>(experts.size()), num_experts / num_shards);
        EXPECT_LE(static_cast<int>(experts.size()), (num_experts + num_shards - 1) / num_shards);
        all.insert(all.end(), experts.begin(), experts.end());
      }
      ASSERT_EQ(static_cast<int>(all.size()), num_experts);
      for (int i = 0; i < num_experts; ++i) EXPECT_EQ(all[i], i);
    }
  }
  EXPECT_EQ(FormatExpertList(ExpertsOfShard(128, 3, 0)), "0-42");
  EXPECT_EQ(FormatExpertList(ExpertsOfShard(128, 3, 2)), "86-127");
}

TEST(ExpertListTest, ReadsRangesAndSingleIds) {
  EXPECT_THAT(*ParseExpertList("0-3,40", 128), ElementsAre(0, 1, 2, 3, 40));
  EXPECT_THAT(*ParseExpertList("5,1-2", 8), ElementsAre(1, 2, 5));
  EXPECT_THAT(*ParseExpertList("7", 8), ElementsAre(7));
  EXPECT_THAT(*ParseExpertList("7-7", 8), ElementsAre(7));
}

TEST(ExpertListTest, RefusesWhatIsNoList) {
  for (const char* text : {"", ",", "1,", "a", "1-", "-1", "1-2-3", "8", "0-8", "3-1", "1,1",
                           "0-3,2", "99999999999", "1 2", "0x1"}) {
    EXPECT_THAT(ParseExpertList(text, 8), StatusIs(StatusCode::kInvalidArgument)) << text;
  }
  EXPECT_THAT(ParseExpertList("0-8", 8),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("expert id is \"8\", want 0..7")));
}

TEST(ExpertListTest, FormatReadsBack) {
  for (const char* text : {"0", "0-127", "0-31,40", "1,3,5-6"}) {
    EXPECT_EQ(FormatExpertList(*ParseExpertList(text, 128)), text);
  }
  EXPECT_EQ(FormatExpertList({}), "");
}

TEST(ExpertChoiceTest, IsAListOrAPlaceAmongShards) {
  EXPECT_FALSE(ExpertChoice().IsGiven());
  EXPECT_THAT(*ChosenExperts({.list = "1-2,5"}, 8), ElementsAre(1, 2, 5));
  EXPECT_THAT(*ChosenExperts({.shard_index = 2, .num_shards = 3}, 8), ElementsAre(6, 7));
  EXPECT_THAT(ChosenExperts({.list = "8"}, 8), StatusIs(StatusCode::kInvalidArgument));
  const auto refuses = [](int index, int count, const char* words) {
    EXPECT_THAT(ChosenExperts({.shard_index = index, .num_shards = count}, 8),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(words)));
  };
  refuses(3, 3, "--shard_index is 3, want 0..2");
  refuses(-1, 3, "--shard_index is -1, want 0..2");
  refuses(0, 0, "--num_shards is 0, want 1..8");
  refuses(0, 9, "--num_shards is 9, want 1..8");
}

TEST(ExpertPlacementTest, ListsReplicasInOrder) {
  const std::vector<ShardExperts> shards = {{2, {0, 1}}, {0, {1, 2}}, {1, {}}};
  ASSERT_OK_AND_ASSIGN(const ExpertPlacement placement, ExpertPlacement::Make(4, shards));
  EXPECT_EQ(placement.num_experts(), 4);
  EXPECT_THAT(placement.ReplicasOf(0), ElementsAre(2));
  EXPECT_THAT(placement.ReplicasOf(1), ElementsAre(2, 0));
  EXPECT_THAT(placement.ReplicasOf(2), ElementsAre(0));
  EXPECT_THAT(placement.ReplicasOf(3), IsEmpty());
  EXPECT_THAT(placement.MissingExperts(), ElementsAre(3));
}

TEST(ExpertPlacementTest, RefusesLyingDescriptions) {
  const std::vector<ShardExperts> past_end = {{0, {0, 4}}}, negative = {{0, {-1}}},
                                  twice = {{0, {1, 1}}}, same_shard = {{0, {1}}, {0, {2}}};
  for (const auto& shards : {past_end, negative, twice, same_shard}) {
    EXPECT_THAT(ExpertPlacement::Make(4, shards), StatusIs(StatusCode::kInvalidArgument));
  }
}

TEST(ExpertPlacementTest, NoShardsLeavesAllMissing) {
  ASSERT_OK_AND_ASSIGN(const ExpertPlacement placement, ExpertPlacement::Make(2, {}));
  EXPECT_THAT(placement.MissingExperts(), ElementsAre(0, 1));
  EXPECT_EQ(ExpertPlacement().num_experts(), 0);
}

}  // namespace
}  // namespace conclave
