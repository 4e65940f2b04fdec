#include "kernels/cuda/moe_routing.h"

#include <algorithm>

#include "tests/kernels/cuda/cuda_test_support.h"

namespace conclave::cuda {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::FloatNear;
using testing::HasSubstr;
using testing::Pointwise;

class CudaMoeGateTest : public CudaTest {
 protected:
  struct Routes {
    std::vector<int32_t> ids;
    std::vector<float> weights;
    int32_t bad_token = 0;
  };

  Routes Route(const std::vector<float>& logits, int num_experts, int top_k, bool norm,
               int32_t num_valid = -1) {
    const int64_t tokens = static_cast<int64_t>(logits.size()) / num_experts;
    DeviceMoeGateArgs args;
    args.args = {.gate_logits = Upload(logits),
                 .topk_ids = Empty<int32_t>(tokens * top_k),
                 .topk_weights = Empty<float>(tokens * top_k),
                 .num_tokens = tokens,
                 .num_experts = num_experts,
                 .num_experts_per_tok = top_k,
                 .norm_topk_prob = norm};
    args.bad_token = Upload(std::vector<int32_t>{0});
    if (num_valid >= 0) args.num_valid_rows = Upload(std::vector<int32_t>{num_valid});
    EXPECT_OK(MoeGate(args, stream()));
    return {Download(args.args.topk_ids, tokens * top_k),
            Download(args.args.topk_weights, tokens * top_k), Download(args.bad_token, 1)[0]};
  }
};

TEST_F(CudaMoeGateTest, MatchesReference) {
  for (const auto& [num_experts, top_k] :
       {std::pair{1, 1}, {7, 7}, {31, 3}, {33, 8}, {60, 4}, {128, 8}, {1024, 10}}) {
    for (const int64_t tokens : {0, 1, 3, 4, 5, 50}) {
      std::vector<float> logits = RandomNormal(tokens * num_experts, FreshSeed(num_experts), 4);
      for (size_t i = 0; i < logits.size(); i += 3) logits[i] = std::round(logits[i]);  // ties
      for (const bool norm : {true, false}) {
        std::vector<int32_t> ids(tokens * top_k);
        std::vector<float> weights(tokens * top_k);
        ASSERT_OK(MoeGateReference({.gate_logits = logits.data(),
                                    .topk_ids = ids.data(),
                                    .topk_weights = weights.data(),
                                    .num_tokens = tokens,
                                    .num_experts = num_experts,
                                    .num_experts_per_tok = top_k,
                                    .norm_topk_prob = norm}));
        const Routes actual = Route(logits, num_experts, top_k, norm);
        EXPECT_EQ(actual.ids, ids) << num_experts;
        // exp to 2 ulp and sums of up to 1024 terms: 1024 * 2^-24 = 6.1e-5 of weights below 1.
        EXPECT_THAT(actual.weights, Pointwise(FloatNear(6.5e-5f), weights));
        EXPECT_EQ(actual.bad_token, 0);
      }
    }
  }
}

TEST_F(CudaMoeGateTest, EqualLogitsGoToTheLowerId) {
  EXPECT_THAT(Route({1, 5, 1, 5, 5, 1, 0, 1}, 8, 5, true).ids, ElementsAre(1, 3, 4, 0, 2));
  EXPECT_THAT(Route(std::vector<float>(100, 0.0f), 100, 4, true).ids, ElementsAre(0, 1, 2, 3));
}

TEST_F(CudaMoeGateTest, NonFiniteLogitsAreReportedAndHarmless) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const Routes routes = Route({0, 1, 2, 3, bad, 5, 6, 7, 8}, 3, 2, true);
    EXPECT_EQ(routes.bad_token, 2);  // 1 + token 1
    for (const int32_t id : routes.ids) EXPECT_TRUE(id >= 0 && id < 3) << id;
  }
}

TEST_F(CudaMoeGateTest, PaddingGetsNoExpert) {
  std::vector<float> logits = RandomNormal(6 * 8, FreshSeed(1));
  logits[5 * 8] = NAN;  // of a row that is padding: not looked at
  const Routes all = Route(std::vector<float>(logits.begin(), logits.begin() + 4 * 8), 8, 2, true);
  const Routes padded = Route(logits, 8, 2, true, 4);
  EXPECT_EQ(padded.bad_token, 0);
  EXPECT_TRUE(std::equal(all.ids.begin(), all.ids.end(), padded.ids.begin()));
  EXPECT_THAT(std::vector<int32_t>(padded.ids.begin() + 8, padded.ids.end()), Each(-1));
}

TEST_F(CudaMoeGateTest, RefusesBadArguments) {
  DeviceMoeGateArgs args;
  args.args = {.num_tokens = 1, .num_experts = 2000, .num_experts_per_tok = 2};
  const absl::StatusCode invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(MoeGate(args, stream()), StatusIs(invalid, HasSubstr("num_experts is 2000")));
  args.args.num_experts = 1;
  EXPECT_THAT(MoeGate(args, stream()), StatusIs(invalid, HasSubstr("num_experts_per_tok is 2")));
  args.args.num_experts = 4;
  EXPECT_THAT(MoeGate(args, stream()), StatusIs(invalid, HasSubstr("gate_logits is null")));
  EXPECT_THAT(SortPairs({.num_tokens = 1, .num_experts = 4, .num_experts_per_tok = 2}, stream()),
              StatusIs(invalid, HasSubstr("expert_offsets is null")));
}

using CudaSortPairsTest = CudaTest;

TEST_F(CudaSortPairsTest, SortsByExpertThenByToken) {
  for (const auto& [num_experts, top_k] : {std::pair{1, 1}, {5, 2}, {128, 8}}) {
    // Slots around a warp and a thread block of 256.
    for (const int64_t tokens : {0, 1, 4, 31, 32, 33, 127, 128, 129, 300}) {
      std::mt19937_64 generator(FreshSeed(tokens));
      std::vector<int32_t> ids;
      for (int64_t token = 0; token < tokens; ++token) {
        std::vector<int32_t> experts(num_experts);
        for (int e = 0; e < num_experts; ++e) experts[e] = e;
        std::shuffle(experts.begin(), experts.end(), generator);
        // Every tenth token is padding. Experts above 60 get nothing.
        for (int k = 0; k < top_k; ++k) {
          ids.push_back(token % 10 == 9 ? -1 : experts[k] % 60);
        }
      }
      const size_t num_slots = ids.size();
      SortPairsArgs args{.topk_ids = Upload(ids),
                         .expert_offsets = Empty<int32_t>(num_experts + 1),
                         .pair_rows = Empty<int32_t>(num_slots),
                         .pair_of_slot = Empty<int32_t>(num_slots),
                         .num_tokens = tokens,
                         .num_experts = num_experts,
                         .num_experts_per_tok = top_k};
      ASSERT_OK(SortPairs(args, stream()));
      std::vector<int32_t> offsets = {0}, rows, pair_of_slot(num_slots, -1);
      for (int e = 0; e < num_experts; ++e) {
        for (size_t slot = 0; slot < num_slots; ++slot) {
          if (ids[slot] != e) continue;
          pair_of_slot[slot] = static_cast<int32_t>(rows.size());
          rows.push_back(static_cast<int32_t>(slot) / top_k);
        }
        offsets.push_back(static_cast<int32_t>(rows.size()));
      }
      EXPECT_EQ(Download(args.expert_offsets, offsets.size()), offsets) << tokens;
      EXPECT_EQ(Download(args.pair_rows, rows.size()), rows) << tokens;
      EXPECT_EQ(Download(args.pair_of_slot, num_slots), pair_of_slot) << tokens;
    }
  }
}

// Of six experts this device has 1, 2 and 5.
TEST_F(CudaSortPairsTest, PairsOfExpertsElsewhereAreLeftOut) {
  SortPairsArgs args{.topk_ids = Upload(std::vector<int32_t>{0, 5, 1, 5, 3, 4, 2, 1}),
                     .place_of_expert = Upload(std::vector<int32_t>{-1, 0, 1, -1, -1, 2}),
                     .expert_offsets = Empty<int32_t>(4),
                     .pair_rows = Empty<int32_t>(8),
                     .pair_of_slot = Empty<int32_t>(8),
                     .num_tokens = 2,
                     .num_experts = 3,
                     .num_experts_per_tok = 4};
  ASSERT_OK(SortPairs(args, stream()));
  EXPECT_THAT(Download(args.expert_offsets, 4), testing::ElementsAre(0, 2, 3, 5));
  EXPECT_THAT(Download(args.pair_rows, 5), testing::ElementsAre(0, 1, 1, 0, 0));
  EXPECT_THAT(Download(args.pair_of_slot, 8), testing::ElementsAre(-1, 3, 0, 4, -1, -1, 2, 1));
}

}  // namespace
}  // namespace conclave::cuda
