#include "kernels/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "tests/kernels/kernel_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Bias = std::vector<std::pair<uint32_t, float>>;

absl::StatusOr<SampleResult> TrySample(std::vector<float> logits, const SamplingParams& params,
                                       uint64_t position = 0, const TokenCounts* counts = nullptr,
                                       const Bias& bias = {}, int64_t num_ids = -1) {
  const int64_t size = static_cast<int64_t>(logits.size());
  return Sample({.logits = logits.data(),
                 .vocab_size = size,
                 .num_ids = num_ids < 0 ? size : num_ids,
                 .params = &params,
                 .counts = counts,
                 .logit_bias = bias,
                 .position = position});
}

SampleResult MustSample(const std::vector<float>& logits, const SamplingParams& params,
                        uint64_t position = 0, const TokenCounts* counts = nullptr,
                        const Bias& bias = {}, int64_t num_ids = -1) {
  const absl::StatusOr<SampleResult> result =
      TrySample(logits, params, position, counts, bias, num_ids);
  EXPECT_OK(result);
  return result.ok() ? *result : SampleResult{};
}

TEST(PhiloxTest, KnownAnswers) {
  // philox4x32-10 vectors published with the Random123 library.
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(
      Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
      ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(PhiloxTest, UniformTakesTheFirst53Bits) {
  EXPECT_EQ(UniformAt(0, 0), static_cast<double>(0x6627e8d5e169c58d >> 11) / 9007199254740992.0);
  EXPECT_NE(UniformAt(1, 0), UniformAt(0, 1));
  EXPECT_NE(UniformAt(uint64_t{1} << 32, 0), UniformAt(0, 0));
  EXPECT_NE(UniformAt(0, uint64_t{1} << 32), UniformAt(0, 0));
  double sum = 0;
  for (uint64_t i = 0; i < 10000; ++i) {
    const double u = UniformAt(42, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 5 * std::sqrt(1.0 / 12 / 10000));  // 5 standard deviations
}

TEST(ArgMaxTest, TiesGoToTheLowerIdAnywhere) {
  for (const int64_t size : {1, 15, 16, 17, 100}) {
    for (int64_t at = 0; at < size; ++at) {
      std::vector<float> logits(size, -1);
      logits[at] = 3;
      EXPECT_EQ(ArgMax(logits.data(), size), at);
      logits[size - 1] = 3;
      EXPECT_EQ(ArgMax(logits.data(), size), at);
    }
  }
}

TEST(LogProbTest, HandWorked) {
  const std::vector<float> logits = {std::log(1.0f), std::log(4.0f), std::log(5.0f), 100};
  EXPECT_NEAR(LogProb(logits.data(), 3, 1), std::log(0.4), 1e-6);  // the last is padding
  const std::vector<float> many(151669, -3.5f);
  EXPECT_NEAR(LogProb(many.data(), 151669, 7), -std::log(151669.0), 1e-6);
}

TEST(SampleTest, GreedyTakesTheLowestOfEqualLogits) {
  EXPECT_EQ(MustSample({1, 5, 2, 5}, {.temperature = 0}).id, 1u);
  EXPECT_EQ(MustSample({1, 5, 2, 5}, {.temperature = 1, .top_k = 1}).id, 1u);
}

TEST(SampleTest, PaddingIsNeverSampled) {
  const std::vector<float> logits = {1, 2, 50, 60};
  EXPECT_EQ(MustSample(logits, {.temperature = 0}, 0, nullptr, {}, 2).id, 1u);
  for (uint64_t p = 0; p < 100; ++p) {
    EXPECT_LT(MustSample(logits, {.temperature = 2}, p, nullptr, {}, 2).id, 2u);
  }
  std::vector<float> with_nan = {1, 2, NAN};
  EXPECT_OK(TrySample(with_nan, {}, 0, nullptr, {}, 2));
}

TEST(SampleTest, IsAFunctionOfSeedAndPosition) {
  const std::vector<float> logits = RandomNormal(1000, 1);
  const SamplingParams params{.top_k = 50, .top_p = 0.95f, .seed = 7};
  std::set<uint32_t> ids;
  for (uint64_t p = 0; p < 50; ++p) {
    const uint32_t id = MustSample(logits, params, p).id;
    EXPECT_EQ(MustSample(logits, params, p).id, id);
    ids.insert(id);
  }
  EXPECT_GT(ids.size(), 10u);
}

// The ids that may be drawn and their probabilities, by a full sort in double.
std::map<uint32_t, double> Expected(const std::vector<float>& logits,
                                    const SamplingParams& params) {
  std::vector<uint32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
  if (params.top_k > 0 && params.top_k < static_cast<int>(ids.size())) ids.resize(params.top_k);
  std::vector<double> weights;
  for (const uint32_t id : ids) {
    weights.push_back(std::exp((double{logits[id]} - logits[ids[0]]) / params.temperature));
  }
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double sum = 0;
  size_t kept = 0;
  while (kept < ids.size() && sum < params.top_p * total) sum += weights[kept++];
  while (kept > 1 && weights[kept - 1] < params.min_p) --kept;
  weights.resize(kept);
  total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::map<uint32_t, double> expected;
  for (size_t i = 0; i < kept; ++i) expected[ids[i]] = weights[i] / total;
  return expected;
}

TEST(SampleTest, DrawsFollowTheDistribution) {
  const std::vector<float> logits = {0.3f, 2, 1, -1, 1, 0, -2, 1.7f, -0.5f, 0.9f, -4, 1};
  const int draws = 20000;
  for (const SamplingParams& params :
       {SamplingParams{}, SamplingParams{.temperature = 0.6f}, SamplingParams{.top_k = 5},
        SamplingParams{.top_k = 100}, SamplingParams{.top_p = 0.8f},
        SamplingParams{.temperature = 0.7f, .top_k = 6, .top_p = 0.8f},
        SamplingParams{.min_p = 0.3f}, SamplingParams{.top_k = 8, .min_p = 0.3f},
        SamplingParams{.temperature = 1.5f, .top_k = 20, .top_p = 0.95f, .min_p = 0.05f},
        SamplingParams{.top_p = 0.9f, .min_p = 0.2f}}) {
    std::map<uint32_t, double> expected = Expected(logits, params);
    std::map<uint32_t, int> counts;
    for (int i = 0; i < draws; ++i) ++counts[MustSample(logits, params, i).id];
    double chi_square = 0;
    for (const auto& [id, probability] : expected) {
      const double mean = probability * draws;
      chi_square += (counts[id] - mean) * (counts[id] - mean) / mean;
    }
    for (const auto& [id, count] : counts) EXPECT_TRUE(expected.contains(id) || count == 0) << id;
    // Mean n - 1, variance 2 (n - 1): 5 standard deviations above.
    const double freedom = static_cast<double>(expected.size()) - 1;
    EXPECT_LE(chi_square, freedom + 5 * std::sqrt(2 * freedom) + 1e-9);
  }
}

TEST(SampleTest, EdgesOfTopKTopPAndMinP) {
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const std::vector<float> logits = {std::log(4.0f), std::log(2.0f), 0, 0};
  auto drawn = [&](const SamplingParams& params) {
    std::set<uint32_t> ids;
    for (uint64_t p = 0; p < 300; ++p) ids.insert(MustSample(logits, params, p).id);
    return ids;
  };
  using Ids = std::set<uint32_t>;
  EXPECT_EQ(drawn({.top_k = 3}), (Ids{0, 1, 2}));  // of the equal ones the lower
  EXPECT_EQ(drawn({.top_p = 0.49f}), (Ids{0}));
  EXPECT_EQ(drawn({.top_p = 0.6f}), (Ids{0, 1}));
  EXPECT_EQ(drawn({.top_p = 0.76f}), (Ids{0, 1, 2}));
  EXPECT_EQ(drawn({.top_p = 1e-6f}), (Ids{0}));  // never empty
  EXPECT_EQ(drawn({.top_p = 1}), (Ids{0, 1, 2, 3}));
  // top_p looks at what top_k left: 0.5 of 0.75 is 2/3.
  EXPECT_EQ(drawn({.top_k = 2, .top_p = 0.65f}), (Ids{0}));
  EXPECT_EQ(drawn({.min_p = 1}), (Ids{0}));
  EXPECT_EQ(drawn({.min_p = 0.3f}), (Ids{0, 1}));
  EXPECT_EQ(drawn({.min_p = 0.2f}), (Ids{0, 1, 2, 3}));
  EXPECT_EQ(drawn({.top_k = 4, .min_p = 0.3f}), (Ids{0, 1}));
  EXPECT_EQ(drawn({.temperature = 1e-6f}), (Ids{0}));
}

TEST(SampleTest, TopPOfAWholeVocabularyIsExact) {
  // Nearly flat: tens of thousands of ids are needed, so the search must widen several times.
  const std::vector<float> logits = RandomNormal(151936, 3, 0.5f);
  const SamplingParams params{.top_p = 0.7f};
  const std::map<uint32_t, double> expected = Expected(logits, params);
  EXPECT_GT(expected.size(), 20000u);
  for (uint64_t p = 0; p < 30; ++p) {
    EXPECT_TRUE(expected.contains(MustSample(logits, params, p).id)) << p;
  }
}

TEST(SampleTest, TopKOfAWholeVocabularyIsExact) {
  std::vector<float> logits = RandomNormal(151936, 4, 3);
  for (float& logit : logits) logit = std::round(logit * 4) / 4;  // many ties
  for (const int top_k : {1, 20, 1000}) {
    const SamplingParams params{.temperature = 2, .top_k = top_k};
    const std::map<uint32_t, double> expected = Expected(logits, params);
    for (uint64_t p = 0; p < 50; ++p) {
      EXPECT_TRUE(expected.contains(MustSample(logits, params, p).id)) << top_k;
    }
  }
}

TEST(SampleTest, WholeVocabularyWithoutLimitsReachesFarIds) {
  const std::vector<float> logits(151936, 0.0f);
  for (uint64_t p = 0; p < 20; ++p) {
    const double expected = UniformAt(9, p) * 151936;
    EXPECT_EQ(MustSample(logits, {.seed = 9}, p).id, static_cast<uint32_t>(expected));
  }
}

TEST(SampleTest, PenaltiesInTheirOrder) {
  // Id 0 generated twice, id 1 in the prompt only, id 2 in both.
  TokenCounts counts;
  counts.output = {{0, 2}, {2, 1}};
  counts.prompt = {{1, 5}, {2, 1}, {999, 1}};
  auto greedy = [&](const std::vector<float>& logits, SamplingParams params) {
    params.temperature = 0;
    return MustSample(logits, params, 0, &counts).id;
  };
  // Presence counts once: 5 - 1.5 < 4; the prompt does not count.
  EXPECT_EQ(greedy({5, 4, 0, 0}, {.presence_penalty = 1.5f}), 1u);
  EXPECT_EQ(greedy({5, 3.4f, 0, 0}, {.presence_penalty = 1.5f}), 0u);
  // Frequency counts twice: 5 - 2 * 0.75 = 3.5.
  EXPECT_EQ(greedy({5, 3.6f, 0, 0}, {.frequency_penalty = 0.75f}), 1u);
  EXPECT_EQ(greedy({5, 3.4f, 0, 0}, {.frequency_penalty = 0.75f}), 0u);
  // Repetition looks at prompt and output: positive logits are divided, once.
  EXPECT_EQ(greedy({5, 5, 5, 2.6f}, {.repetition_penalty = 2}), 3u);
  EXPECT_EQ(greedy({5, 5, 5, 2.4f}, {.repetition_penalty = 2}), 0u);
  // Negative ones are multiplied.
  EXPECT_EQ(greedy({-1, -1, -1, -1.9f}, {.repetition_penalty = 2}), 3u);
  // Repetition first: 6 / 2 - 2 * 0.5 = 2; the other order would give 2.5.
  EXPECT_EQ(greedy({6, 0, 0, 2.2f}, {.frequency_penalty = 0.5f, .repetition_penalty = 2}), 3u);
  EXPECT_EQ(greedy({6, 0, 0, 1.9f}, {.frequency_penalty = 0.5f, .repetition_penalty = 2}), 0u);
  // Negative penalties reward.
  EXPECT_EQ(greedy({1, 2, 0, 0}, {.presence_penalty = -1.5f}), 0u);
}

TEST(SampleTest, BiasMovesAndForbids) {
  EXPECT_EQ(MustSample({1, 2, 3}, {.temperature = 0}, 0, nullptr, {{0, 2.5f}}).id, 0u);
  const Bias forbid = {{2, -INFINITY}, {1, -INFINITY}};
  EXPECT_EQ(MustSample({1, 2, 3}, {.temperature = 0}, 0, nullptr, forbid).id, 0u);
  for (const SamplingParams& params :
       {SamplingParams{}, SamplingParams{.top_k = 2}, SamplingParams{.top_p = 0.99f},
        SamplingParams{.top_k = 2, .top_p = 0.99f}, SamplingParams{.min_p = 0.01f}}) {
    for (uint64_t p = 0; p < 50; ++p) {
      EXPECT_EQ(MustSample({1, 2, 3}, params, p, nullptr, forbid).id, 0u);
    }
  }
}

TEST(SampleTest, LogprobsAreTheModelsOwn) {
  // Probabilities 0.1, 0.4, 0.2, 0.3; penalties, bias and temperature do not change what is told.
  const std::vector<float> logits = {0, std::log(4.0f), std::log(2.0f), std::log(3.0f)};
  const SampleResult result = MustSample(
      logits, {.temperature = 0, .num_top_logprobs = 3, .logprob = true}, 0, nullptr, {{0, 10.0f}});
  EXPECT_EQ(result.id, 0u);
  EXPECT_NEAR(result.logprob, std::log(0.1), 1e-6);
  ASSERT_EQ(result.top_logprobs.size(), 3u);
  EXPECT_EQ(result.top_logprobs[0].id, 1u);
  EXPECT_NEAR(result.top_logprobs[0].logprob, std::log(0.4), 1e-6);
  EXPECT_EQ(result.top_logprobs[1].id, 3u);
  EXPECT_EQ(result.top_logprobs[2].id, 2u);
  EXPECT_EQ(MustSample(logits, {.num_top_logprobs = 20}).top_logprobs.size(), 4u);
  EXPECT_TRUE(MustSample(logits, {}).top_logprobs.empty());
}

TEST(SampleTest, NonFiniteLogitsAreNamed) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const int64_t at : {0, 15, 16, 36}) {
      std::vector<float> logits(37, 1.0f);
      logits[at] = bad;
      for (const float temperature : {0.0f, 1.0f}) {
        EXPECT_THAT(TrySample(logits, {.temperature = temperature}),
                    StatusIs(absl::StatusCode::kInternal,
                             HasSubstr("logit of id " + std::to_string(at) + " is ")));
      }
    }
  }
}

TEST(SampleTest, OverflowUnderPenaltiesIsAnError) {
  TokenCounts counts;
  counts.output = {{0, 1}};
  EXPECT_THAT(TrySample({3e38f, 0}, {.repetition_penalty = 0.1f}, 0, &counts),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("overflows")));
}

TEST(SampleTest, RefusesBadArguments) {
  constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
  auto expect = [&](const SamplingParams& params, const char* text) {
    EXPECT_THAT(params.Validate(), StatusIs(kInvalid, HasSubstr(text)));
    EXPECT_THAT(TrySample({1, 2}, params), StatusIs(kInvalid, HasSubstr(text)));
  };
  expect({.temperature = -1}, "temperature is -1, want 0..2");
  expect({.temperature = 2.5f}, "temperature is 2.5");
  expect({.temperature = NAN}, "temperature is nan");
  expect({.top_k = -1}, "top_k is -1");
  expect({.top_p = 0}, "top_p is 0");
  expect({.top_p = 1.5f}, "top_p is 1.5");
  expect({.min_p = -0.1f}, "min_p is -0.1");
  expect({.min_p = 1.1f}, "min_p is 1.1");
  expect({.presence_penalty = 3}, "presence_penalty is 3, want -2..2");
  expect({.frequency_penalty = -3}, "frequency_penalty is -3, want -2..2");
  expect({.repetition_penalty = 0}, "repetition_penalty is 0");
  expect({.num_top_logprobs = 21}, "num_top_logprobs is 21, want 0..20");
  EXPECT_OK(SamplingParams{}.Validate());

  EXPECT_THAT(TrySample({1, 2}, {}, 0, nullptr, {{2, 1.0f}}),
              StatusIs(kInvalid, HasSubstr("logit_bias id is 2, want 0..1")));
  EXPECT_THAT(TrySample({1, 2}, {}, 0, nullptr, {{0, NAN}}),
              StatusIs(kInvalid, HasSubstr("logit_bias is nan")));
  EXPECT_THAT(TrySample({1, 2}, {}, 0, nullptr, {{0, INFINITY}}),
              StatusIs(kInvalid, HasSubstr("logit_bias is inf")));
  EXPECT_THAT(TrySample({1, 2}, {}, 0, nullptr, {{0, -INFINITY}, {1, -INFINITY}}),
              StatusIs(kInvalid, HasSubstr("forbids every id")));
  EXPECT_THAT(TrySample({1, 2}, {}, 0, nullptr, {}, 3),
              StatusIs(kInvalid, HasSubstr("num_ids is 3, want 1..2")));
  EXPECT_THAT(TrySample({1, 2}, {}, 0, nullptr, {}, 0), StatusIs(kInvalid, HasSubstr("num_ids")));
  const SamplingParams params;
  EXPECT_THAT(Sample({.vocab_size = 1, .num_ids = 1, .params = &params}),
              StatusIs(kInvalid, HasSubstr("logits is null")));
  float logit = 0;
  EXPECT_THAT(Sample({.logits = &logit, .vocab_size = 1, .num_ids = 1}),
              StatusIs(kInvalid, HasSubstr("params is null")));
}

}  // namespace
}  // namespace conclave
