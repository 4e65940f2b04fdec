#include "expert_shard/dispatch_rules.h"

#include "expert_shard/merged_pairs.h"
#include "model/synthetic.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kEpoch = 77;

v1::ExpertDispatch Valid() {
  v1::ExpertDispatch dispatch;
  dispatch.set_layer(1);
  dispatch.set_placement_epoch(kEpoch);
  dispatch.set_num_rows(2);
  for (const auto& [row, expert] :
       std::vector<std::pair<int, int>>{{0, 1}, {1, 1}, {0, 3}, {1, 4}}) {
    dispatch.add_pair_rows(row);
    dispatch.add_pair_experts(expert);
  }
  return dispatch;
}

class DispatchRulesTest : public testing::Test {
 protected:
  absl::Status Check(const v1::ExpertDispatch& dispatch) const {
    return rules_.Check(dispatch, dispatch.num_rows() * rules_.row_bytes());
  }
  static Qwen3Config Config() {
    Qwen3Config config = TinyMoeConfig();
    config.num_hidden_layers = 3;
    config.mlp_only_layers = {2};
    return config;
  }
  const DispatchRules rules_{Config(), std::vector<int>{1, 3, 4}, kEpoch};
};

TEST_F(DispatchRulesTest, AcceptsWhatIsRight) {
  EXPECT_EQ(rules_.row_bytes(), 128u);
  EXPECT_OK(Check(Valid()));
}

TEST_F(DispatchRulesTest, StalePlacementComesFirst) {
  v1::ExpertDispatch dispatch = Valid();
  dispatch.set_placement_epoch(76);
  dispatch.set_layer(100);
  EXPECT_THAT(Check(dispatch),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("76, want 77")));
}

TEST_F(DispatchRulesTest, AnExpertThatIsElsewhere) {
  v1::ExpertDispatch dispatch = Valid();
  dispatch.set_pair_experts(2, 2);
  EXPECT_THAT(Check(dispatch), StatusIs(absl::StatusCode::kFailedPrecondition,
                                        HasSubstr("expert 2 of layer 1 is not held here")));
}

TEST_F(DispatchRulesTest, NamesEveryOtherMistake) {
  const auto expect_refused = [&](const char* what, auto&& spoil) {
    v1::ExpertDispatch dispatch = Valid();
    spoil(dispatch);
    EXPECT_THAT(Check(dispatch), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what)));
  };
  expect_refused("layer is 3", [](auto& d) { d.set_layer(3); });
  expect_refused("layer is 4294967295", [](auto& d) { d.set_layer(~0u); });
  expect_refused("layer is 2, want a layer with experts", [](auto& d) { d.set_layer(2); });
  expect_refused("num_rows is 0", [](auto& d) { d.set_num_rows(0); });
  expect_refused("length of pair_experts is 5", [](auto& d) { d.add_pair_experts(4); });
  expect_refused("number of pairs is 5, want 1..4", [](auto& d) {
    d.add_pair_rows(0);
    d.add_pair_experts(4);
  });
  expect_refused("number of pairs is 0", [](auto& d) {
    d.clear_pair_rows();
    d.clear_pair_experts();
  });
  expect_refused("pair_rows is 2, want below 2", [](auto& d) { d.set_pair_rows(3, 2); });
  expect_refused("pair_experts is 8, want below 8", [](auto& d) { d.set_pair_experts(3, 8); });
  expect_refused("pair_experts is 1, want at least 3", [](auto& d) { d.set_pair_experts(3, 1); });
  v1::ExpertDispatch huge = Valid();
  huge.set_num_rows(~0u);
  EXPECT_THAT(rules_.Check(huge, 256),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("hidden_states is 256")));
  EXPECT_THAT(rules_.Check(Valid(), 255), StatusIs(absl::StatusCode::kInvalidArgument));
}

v1::ExpertDispatch Pairs(uint32_t num_rows, const std::vector<std::pair<int, int>>& pairs) {
  v1::ExpertDispatch dispatch;
  dispatch.set_num_rows(num_rows);
  for (const auto& [row, expert] : pairs) {
    dispatch.add_pair_rows(row);
    dispatch.add_pair_experts(expert);
  }
  return dispatch;
}

TEST(MergedPairs, EachExpertOnce) {
  const v1::ExpertDispatch a = Pairs(2, {{0, 1}, {1, 1}, {0, 5}});
  const v1::ExpertDispatch b = Pairs(3, {{2, 0}, {2, 1}, {0, 5}, {1, 5}});
  MergedPairs merged;
  MergePairs({&a, &b}, &merged);
  EXPECT_THAT(merged.pair_experts, ElementsAre(0, 1, 1, 1, 5, 5, 5));
  EXPECT_THAT(merged.pair_rows, ElementsAre(4, 0, 1, 4, 0, 2, 3));
  ASSERT_EQ(merged.runs.size(), 2u);
  ASSERT_EQ(merged.runs[0].size(), 2u);
  EXPECT_EQ(merged.runs[0][0].first_pair, 1);
  EXPECT_EQ(merged.runs[0][0].num_pairs, 2);
  EXPECT_EQ(merged.runs[0][1].first_pair, 4);
  ASSERT_EQ(merged.runs[1].size(), 3u);
  EXPECT_EQ(merged.runs[1][2].first_pair, 5);
  EXPECT_EQ(merged.runs[1][2].num_pairs, 2);

  MergePairs({&a}, &merged);  // alone: one run, nothing moved
  EXPECT_THAT(merged.pair_rows, ElementsAre(0, 1, 0));
  ASSERT_EQ(merged.runs.size(), 1u);
  ASSERT_EQ(merged.runs[0].size(), 1u);
  EXPECT_EQ(merged.runs[0][0].num_pairs, 3);
}

}  // namespace
}  // namespace conclave
