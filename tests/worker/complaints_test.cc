// What users of other servers complain about and a worker or a shard has to do better; the rest of
// docs/complaints.md is in tests/router/complaints_test.cc.

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "common/metrics.h"
#include "expert_shard/shard_metrics.h"
#include "model/known_models.h"
#include "tests/fuzz/automaton_checker.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_shard.h"
#include "worker/grpc_expert_exchange.h"
#include "worker/local_expert_exchange.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// There is no speculative decoding here; what it breaks elsewhere is that one step brings several
// ids. The automaton is asked after each, so that a step is cut where the budget ends.
TEST(Complaint05, SeveralIdsOfOneStepDoNotPassTheBudget) {
  for (int ids_per_step = 1; ids_per_step <= 8; ++ids_per_step) {
    for (int64_t budget = 0; budget < 20; ++budget) {
      ThinkingAutomaton automaton(CheckerOptions(budget), CheckerBytes);
      automaton.OnSampled(kThinkTag);
      while (!automaton.must_force()) {
        for (int i = 0; i < ids_per_step && !automaton.must_force(); ++i) automaton.OnSampled('a');
        ASSERT_LE(automaton.state().used, budget);
      }
      EXPECT_EQ(automaton.state().used, budget);
      automaton.OnForced();
      for (int i = 0; i < 3 * ids_per_step; ++i) automaton.OnSampled('b');
      EXPECT_EQ(automaton.state().used, budget) << "the answer is not thinking";
    }
  }
}

TEST(Complaint08, TheCheckCostsTheSameAtAnyDepth) {
  int64_t lookups = 0;  // of an id's bytes: the automaton's only input that could grow
  const TokenBytes counting = [&lookups](uint32_t id) {
    ++lookups;
    return CheckerBytes(id);
  };
  constexpr int64_t kDepth = 200'000;
  ThinkingAutomaton automaton(CheckerOptions(kDepth), counting);
  automaton.OnSampled(kThinkTag);
  int64_t near_the_end = 0;
  for (int64_t depth = 0; depth < kDepth; ++depth) {
    lookups = 0;
    automaton.ForbiddenIds(CheckerSplittingIds());
    if (depth + 3 < kDepth) {
      ASSERT_EQ(lookups, 0) << "at " << depth;
    }
    near_the_end = lookups;
    automaton.OnSampled('a');
    ASSERT_LE(lookups - near_the_end, 1) << "at " << depth;
  }
  EXPECT_TRUE(automaton.must_force());
  // In the last three steps each id that may split a character is looked at, however deep it is.
  EXPECT_LE(near_the_end, 2 * static_cast<int64_t>(CheckerSplittingIds().size()));
  EXPECT_LE(automaton.state().partial_utf8.size(), 3u);
}

TEST(Complaint17, AShardThatDiesStopsNoLayer) {
  TestModel model(TinyMoeConfig());
  auto victim = std::make_unique<TestShard>(model, model.AllExperts());
  TestShard survivor(model, model.AllExperts());
  Metrics metrics;
  GrpcExpertExchangeOptions options;
  options.shards = {victim->target(), survivor.target()};
  options.fingerprint = model.fingerprint();
  options.config = model.config();
  GrpcExpertExchange exchange(std::move(options), nullptr, &metrics);
  LocalExpertExchange local(model.config(), model.LoadRunner(model.AllExperts()));
  ASSERT_OK(exchange.AwaitReady(absl::Now() + absl::Seconds(60)));

  constexpr int64_t kRows = 9;
  const std::vector<BFloat16> hidden = RandomRows(kRows, model.config().hidden_size, 3);
  const std::vector<int32_t> topk_ids = RandomTopk(model.config(), kRows, 3);
  ExpertBatch batch;
  batch.layer = 1;
  batch.hidden_states = hidden.data();
  batch.topk_ids = topk_ids.data();
  batch.num_rows = kRows;
  for (int i = 0; i < 3; ++i) {
    if (i == 1) victim = nullptr;
    std::vector<const BFloat16*> rows, expected;
    ASSERT_OK(exchange.Run(batch, rows)) << i;
    ASSERT_OK(local.Run(batch, expected));
    ASSERT_EQ(rows.size(), expected.size());
    const size_t row_bytes = model.config().hidden_size * sizeof(BFloat16);
    for (size_t pair = 0; pair < rows.size(); ++pair) {
      EXPECT_EQ(std::memcmp(rows[pair], expected[pair], row_bytes), 0) << "no expert is skipped";
    }
  }
}

TEST(Complaint18, TheLoadOfExpertsIsOneSeriesALayer) {
  const absl::StatusOr<Qwen3Config> config = KnownModel("qwen3-235b-a22b");
  ASSERT_OK(config);
  Metrics registry;
  ShardMetrics metrics(&registry, *config);
  std::vector<int> experts(static_cast<size_t>(config->num_experts));
  std::vector<uint32_t> pairs;
  for (int expert = 0; expert < config->num_experts; ++expert) {
    experts[static_cast<size_t>(expert)] = expert;
    pairs.push_back(static_cast<uint32_t>(expert));
    pairs.push_back(static_cast<uint32_t>(expert));
  }
  pairs.resize(pairs.size() + config->num_experts, 7);  // one expert has far more than its share
  for (int layer = 0; layer < config->num_hidden_layers; ++layer) {
    metrics.AddLoad(layer, experts, pairs);
  }
  const std::string text = registry.Text();
  int of_layers = 0, all = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    all += !absl::StartsWith(line, "#");
    of_layers += absl::StartsWith(line, "conclave_shard_expert_imbalance_ratio{");
  }
  EXPECT_EQ(of_layers, config->num_hidden_layers);
  // 130 pairs of the busiest, 3 in the mean.
  EXPECT_THAT(text, HasSubstr("conclave_shard_expert_imbalance_ratio{layer=\"93\"} 43.3333"));
  EXPECT_THAT(text, Not(HasSubstr("expert=")));
  // The rest does not depend on the model's size: three histograms and a handful of numbers.
  EXPECT_LT(all - of_layers, 100);
}

}  // namespace
}  // namespace conclave
