#include "kernels/moe_gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/kernel_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::FloatNear;
using testing::HasSubstr;
using testing::Pointwise;

struct Routes {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Routes Route(const std::vector<float>& logits, int num_experts, int top_k, bool norm,
             bool reference) {
  const int64_t tokens = static_cast<int64_t>(logits.size()) / num_experts;
  Routes routes{std::vector<int32_t>(tokens * top_k, -1), std::vector<float>(tokens * top_k)};
  const MoeGateArgs args{.gate_logits = logits.data(),
                         .topk_ids = routes.ids.data(),
                         .topk_weights = routes.weights.data(),
                         .num_tokens = tokens,
                         .num_experts = num_experts,
                         .num_experts_per_tok = top_k,
                         .norm_topk_prob = norm};
  EXPECT_OK(reference ? MoeGateReference(args) : MoeGate(args, {.isa = DetectCpuIsa()}));
  return routes;
}

TEST(MoeGateTest, HandWorked) {
  // Softmax of (ln 1, ln 4, ln 2, ln 3) is (0.1, 0.4, 0.2, 0.3).
  const std::vector<float> logits = {0, std::log(4.0f), std::log(2.0f), std::log(3.0f)};
  for (const bool reference : {true, false}) {
    const Routes raw = Route(logits, 4, 2, false, reference);
    EXPECT_THAT(raw.ids, ElementsAre(1, 3));
    EXPECT_THAT(raw.weights, ElementsAre(FloatNear(0.4f, 1e-6f), FloatNear(0.3f, 1e-6f)));
    const Routes normed = Route(logits, 4, 2, true, reference);
    EXPECT_THAT(normed.ids, ElementsAre(1, 3));
    EXPECT_THAT(normed.weights,
                ElementsAre(FloatNear(4.0f / 7, 1e-6f), FloatNear(3.0f / 7, 1e-6f)));
  }
}

TEST(MoeGateTest, EqualLogitsGoToTheLowerId) {
  for (const bool reference : {true, false}) {
    EXPECT_THAT(Route({1, 5, 1, 5, 5, 1, 0, 1}, 8, 5, true, reference).ids,
                ElementsAre(1, 3, 4, 0, 2));
    EXPECT_THAT(Route(std::vector<float>(8, 0.0f), 8, 3, true, reference).ids,
                ElementsAre(0, 1, 2));
  }
}

TEST(MoeGateTest, MatchesReference) {
  for (const auto& [num_experts, top_k] :
       {std::pair{1, 1}, {7, 7}, {60, 4}, {128, 8}, {1024, 10}}) {
    for (const int64_t tokens : {0, 1, 50}) {
      std::vector<float> logits = RandomNormal(tokens * num_experts, num_experts, 4);
      for (size_t i = 0; i < logits.size(); i += 3) logits[i] = std::round(logits[i]);  // ties
      for (const bool norm : {true, false}) {
        const Routes expected = Route(logits, num_experts, top_k, norm, true);
        const Routes actual = Route(logits, num_experts, top_k, norm, false);
        EXPECT_EQ(actual.ids, expected.ids);
        // exp to 2 ulp and sums of up to 1024 terms: 1024 * 2^-24 = 6.1e-5 of weights below 1.
        EXPECT_THAT(actual.weights, Pointwise(FloatNear(6.5e-5f), expected.weights));
      }
    }
  }
}

TEST(MoeGateTest, HugeLogitsDoNotOverflow) {
  const Routes routes = Route({3e38f, -3e38f, 2.9e38f}, 3, 2, true, false);
  EXPECT_THAT(routes.ids, ElementsAre(0, 2));
  EXPECT_THAT(routes.weights, ElementsAre(1, 0));
}

TEST(MoeGateTest, NonFiniteLogitsAreNamed) {
  std::vector<int32_t> ids(4);
  std::vector<float> weights(4);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const std::vector<float> logits = {0, 1, 2, 3, bad, 5};
    const MoeGateArgs args{.gate_logits = logits.data(),
                           .topk_ids = ids.data(),
                           .topk_weights = weights.data(),
                           .num_tokens = 2,
                           .num_experts = 3,
                           .num_experts_per_tok = 2};
    const auto expected =
        StatusIs(absl::StatusCode::kInternal, HasSubstr("gate logit of token 1, expert 1 is "));
    EXPECT_THAT(MoeGate(args, {}), expected);
    EXPECT_THAT(MoeGateReference(args), expected);
  }
}

TEST(MoeGateTest, RefusesBadArguments) {
  const std::vector<float> logits(4);
  std::vector<int32_t> ids(4);
  std::vector<float> weights(4);
  const MoeGateArgs good{.gate_logits = logits.data(),
                         .topk_ids = ids.data(),
                         .topk_weights = weights.data(),
                         .num_tokens = 1,
                         .num_experts = 4,
                         .num_experts_per_tok = 2};
  auto expect = [&](auto change, const char* text) {
    MoeGateArgs bad = good;
    change(bad);
    EXPECT_THAT(MoeGate(bad, {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text)));
    EXPECT_THAT(MoeGateReference(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text)));
  };
  expect([](MoeGateArgs& a) { a.num_tokens = -1; }, "num_tokens is -1");
  expect([](MoeGateArgs& a) { a.num_experts = 2000; }, "num_experts is 2000, want 1..1024");
  expect([](MoeGateArgs& a) { a.num_experts_per_tok = 5; }, "num_experts_per_tok is 5, want 1..4");
  expect([](MoeGateArgs& a) { a.gate_logits = nullptr; }, "gate_logits is null");
  expect([](MoeGateArgs& a) { a.topk_ids = nullptr; }, "topk_ids is null");
  expect([](MoeGateArgs& a) { a.topk_weights = nullptr; }, "topk_weights is null");
}

}  // namespace
}  // namespace conclave
