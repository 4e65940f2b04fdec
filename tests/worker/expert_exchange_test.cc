#include "worker/expert_exchange.h"

#include <algorithm>
#include <thread>

#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "tests/support/exchange_fixture.h"
#include "tests/support/fake_resolver.h"
#include "tests/support/scripted_shard.h"
#include "worker/local_expert_exchange.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Act = ScriptedShard::Act;

using ExpertExchangeTest = ExchangeFixture;

TEST_F(ExpertExchangeTest, PairOrderSortsByExpertThenRow) {
  const std::vector<int32_t> topk_ids = {5, 2, 2, 0, 5, 0};
  ExpertBatch batch;
  batch.topk_ids = topk_ids.data();
  batch.num_rows = 3;
  PairOrder order;
  SortPairs(batch, 2, 8, &order);
  EXPECT_THAT(order.experts, testing::ElementsAre(0, 0, 2, 2, 5, 5));
  EXPECT_THAT(order.rows, testing::ElementsAre(1, 2, 0, 1, 0, 2));
  EXPECT_THAT(order.slots, testing::ElementsAre(3, 5, 1, 2, 0, 4));
}

TEST_F(ExpertExchangeTest, EveryTopologyGivesTheSameBits) {
  std::vector<std::unique_ptr<TestShard>> shards;
  const std::vector<std::vector<std::vector<int>>> topologies = {
      {{0, 1, 2, 3, 4, 5, 6, 7}},
      {{0, 1, 2, 3}, {4, 5, 6, 7}},
      {{0, 3, 6}, {1, 4, 7}, {2, 5}},
      {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}},  // two replicas
  };
  std::vector<std::unique_ptr<GrpcExpertExchange>> exchanges;
  for (const auto& topology : topologies) {
    std::vector<std::string> targets;
    for (const std::vector<int>& experts : topology) {
      shards.push_back(std::make_unique<TestShard>(*model_, experts));
      targets.push_back(shards.back()->target());
    }
    exchanges.push_back(Connect(Options(targets)));
  }
  // Some experts here, the rest on a shard.
  exchanges.push_back(Connect(Options({shards[2]->target()}), {0, 1, 2, 3}));
  for (const int64_t num_rows : {1, 2, 37}) {
    for (const int layer : {0, 1}) {
      const ExchangeStep step(*model_, layer, num_rows, static_cast<uint64_t>(num_rows + layer));
      const Rows expected = Expected(step);
      for (const auto& exchange : exchanges) {
        ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
        EXPECT_TRUE(rows == expected);
      }
    }
  }
  for (const auto& exchange : exchanges) EXPECT_EQ(Retries(*exchange), 0u);
  // Both replicas had work.
  for (const v1::ShardState& shard : exchanges[3]->Shards()) EXPECT_GT(shard.rows_sent(), 0u);
  EXPECT_THAT(metrics_.Text(), HasSubstr("conclave_worker_dispatch_seconds_count"));
}

TEST_F(ExpertExchangeTest, LargeBatchesAreCutIntoFrames) {
  TestShard a(*model_, {0, 1, 2, 3}), b(*model_, {4, 5, 6, 7});
  const auto exchange = Connect(Options({a.target(), b.target()}));
  // 40,000 rows of 128 bytes: more than one frame of 4 MiB to each shard, and back.
  const ExchangeStep step(*model_, 1, 40'000, 3);
  ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
  EXPECT_TRUE(rows == Expected(step));
}

TEST_F(ExpertExchangeTest, AnEmptyBatchNeedsNoShard) {
  GrpcExpertExchange exchange(Options({"127.0.0.1:1"}), nullptr, &metrics_);
  const ExchangeStep step(*model_, 0, 0, 1);
  std::vector<const BFloat16*> expert_rows(5);
  EXPECT_OK(exchange.Run(step.batch, expert_rows));
  EXPECT_TRUE(expert_rows.empty());
}

TEST_F(ExpertExchangeTest, TwoWorkersShareShards) {
  TestShard a(*model_, {0, 1, 2, 3}), b(*model_, {4, 5, 6, 7});
  std::vector<std::thread> workers;
  for (int worker = 0; worker < 2; ++worker) {
    workers.emplace_back([&, worker] {
      Metrics metrics;
      GrpcExpertExchange exchange(Options({a.target(), b.target()}), nullptr, &metrics);
      ASSERT_OK(exchange.AwaitReady(absl::Now() + kPatience));
      for (int i = 0; i < 40; ++i) {
        const ExchangeStep step(*model_, i % 2, 1 + i % 9, static_cast<uint64_t>(worker * 50 + i));
        ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(exchange));
        ASSERT_TRUE(rows == Expected(step));
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
}

TEST_F(ExpertExchangeTest, AnswersInPiecesAndOutOfOrder) {
  ScriptedShard shard(*model_, model_->AllExperts());
  const auto exchange = Connect(Options({shard.target()}));
  shard.Play({{Act::kAnswerInOnes}, {Act::kUnknownSequence}});
  for (int i = 0; i < 3; ++i) {
    const ExchangeStep step(*model_, 0, 5, i);
    ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
    EXPECT_TRUE(rows == Expected(step));
  }
  EXPECT_EQ(Retries(*exchange), 0u);
}

// Each misdeed in the middle of a layer, with another shard that holds the same experts.
TEST_F(ExpertExchangeTest, AReplicaTakesOver) {
  for (const ScriptedShard::Step misdeed :
       std::vector<ScriptedShard::Step>{{Act::kEndStream},
                                        {Act::kAnswerHalfThenEnd},
                                        {Act::kSayNothing},
                                        {Act::kWrongLength},
                                        {Act::kWrongRange},
                                        {Act::kTwice},
                                        {Act::kAnswer, grpc::UNAVAILABLE},
                                        {Act::kAnswer, grpc::INTERNAL},
                                        {Act::kAnswer, grpc::FAILED_PRECONDITION},
                                        {Act::kAnswer, grpc::RESOURCE_EXHAUSTED},
                                        {Act::kAnswer, grpc::DEADLINE_EXCEEDED}}) {
    ScriptedShard bad(*model_, model_->AllExperts());
    TestShard good(*model_, model_->AllExperts());
    GrpcExpertExchangeOptions options = Options({bad.target(), good.target()});
    options.dispatch_timeout = absl::Seconds(3);  // for the one that says nothing
    options.shard_wait = kPatience;
    const auto exchange = Connect(std::move(options));
    ASSERT_TRUE(AwaitUp(*exchange, true));
    bad.Play({misdeed});
    const ExchangeStep step(*model_, 1, 20, 8);
    ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
    EXPECT_TRUE(rows == Expected(step))
        << static_cast<int>(misdeed.act) << " " << misdeed.error_code;
    EXPECT_EQ(bad.steps_left(), 0u) << "it was not asked";
    EXPECT_EQ(Retries(*exchange), 1u);
  }
}

// The same with nobody else: the layer waits until that shard is itself again.
TEST_F(ExpertExchangeTest, WithoutAReplicaItWaits) {
  for (const ScriptedShard::Step misdeed :
       std::vector<ScriptedShard::Step>{{Act::kEndStream},
                                        {Act::kAnswerHalfThenEnd},
                                        {Act::kTwice},
                                        {Act::kAnswer, grpc::UNAVAILABLE},
                                        {Act::kAnswer, grpc::FAILED_PRECONDITION},
                                        {Act::kAnswer, grpc::RESOURCE_EXHAUSTED}}) {
    ScriptedShard shard(*model_, model_->AllExperts());
    const auto exchange = Connect(Options({shard.target()}));
    shard.Play({misdeed, misdeed});
    const ExchangeStep step(*model_, 0, 20, 8);
    ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
    EXPECT_TRUE(rows == Expected(step))
        << static_cast<int>(misdeed.act) << " " << misdeed.error_code;
    EXPECT_EQ(Retries(*exchange), 2u);
  }
}

TEST_F(ExpertExchangeTest, EachShardIsToldOfARequestOnce) {
  ScriptedShard a(*model_, {0, 1, 2, 3}), b(*model_, {4, 5, 6, 7});
  const auto exchange = Connect(Options({a.target(), b.target()}));
  v1::RequestTag tag;
  tag.set_request_id("r1");
  tag.set_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  exchange->Announce(tag);
  for (const uint64_t seed : {1, 2, 3}) {
    EXPECT_OK(ExchangeStep(*model_, 0, 20, seed).Run(*exchange));
  }
  for (const ScriptedShard* shard : {&a, &b}) {
    const std::vector<v1::RequestTag> told = shard->announced();
    ASSERT_EQ(told.size(), 1u);
    EXPECT_EQ(told[0].request_id(), "r1");
    EXPECT_EQ(told[0].traceparent(), tag.traceparent());
  }
}

TEST_F(ExpertExchangeTest, AStaleEpochIsAskedForAgain) {
  ScriptedShard liar(*model_, model_->AllExperts());
  const auto exchange = Connect(Options({liar.target()}));
  // What a shard does whose placement changed since it was asked.
  v1::ShardDescription changed = liar.description();
  changed.set_placement_epoch(9);
  liar.SetDescription(changed);
  liar.Play({{Act::kAnswer, grpc::FAILED_PRECONDITION}});
  const ExchangeStep step(*model_, 0, 4, 1);
  ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
  EXPECT_TRUE(rows == Expected(step));
  EXPECT_EQ(liar.dispatches(), 2);
}

TEST_F(ExpertExchangeTest, ARefusedDispatchIsOurBugAndFails) {
  ScriptedShard shard(*model_, model_->AllExperts());
  const auto exchange = Connect(Options({shard.target()}));
  shard.Play({{Act::kAnswer, grpc::INVALID_ARGUMENT}});
  const ExchangeStep step(*model_, 0, 4, 1);
  EXPECT_THAT(step.Run(*exchange),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(shard.target())));
  ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));  // the next layer is well
  EXPECT_TRUE(rows == Expected(step));
}

TEST_F(ExpertExchangeTest, KilledUnderLoadWithAReplica) {
  auto victim = std::make_unique<TestShard>(*model_, model_->AllExperts());
  TestShard survivor(*model_, model_->AllExperts());
  const auto exchange = Connect(Options({victim->target(), survivor.target()}));
  ASSERT_TRUE(AwaitUp(*exchange, true));
  absl::Notification under_load, killed;
  std::thread killer([&] {
    under_load.WaitForNotification();
    victim.reset();
    killed.Notify();
  });
  absl::Duration longest;
  for (int i = 0; i < 20 || !killed.HasBeenNotified(); ++i) {
    if (i == 10) under_load.Notify();
    const ExchangeStep step(*model_, i % 2, 1 + i % 11, static_cast<uint64_t>(i));
    const absl::Time start = absl::Now();
    ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
    longest = std::max(longest, absl::Now() - start);
    ASSERT_TRUE(rows == Expected(step)) << i;
  }
  killer.join();
  EXPECT_OK(exchange->Ready());
  // The aim is 0.5 s; this machine may be crowded and slowed by a sanitizer.
  EXPECT_LT(longest, absl::Seconds(10));
}

TEST_F(ExpertExchangeTest, KilledWithoutAReplicaAndRestarted) {
  auto shard = std::make_unique<TestShard>(*model_, model_->AllExperts(), /*epoch=*/1);
  const std::string target = shard->target();
  const auto exchange = Connect(Options({target}));
  const ExchangeStep step(*model_, 1, 6, 4);
  ASSERT_OK(step.Run(*exchange));
  shard.reset();
  ASSERT_TRUE(AwaitUp(*exchange, false));
  EXPECT_THAT(exchange->Ready(),
              StatusIs(absl::StatusCode::kUnavailable,
                       AllOf(HasSubstr("serves experts 0-7 of layer 0"), HasSubstr(target))));
  absl::StatusOr<Rows> rows = absl::UnknownError("not yet");
  std::thread engine([&] { rows = step.Run(*exchange); });
  shard = std::make_unique<TestShard>(*model_, model_->AllExperts(), /*epoch=*/2, target);
  engine.join();
  ASSERT_OK(rows);
  EXPECT_TRUE(*rows == Expected(step));
  EXPECT_OK(exchange->Ready());
}

TEST_F(ExpertExchangeTest, AnotherShardMayBringTheExpertsBack) {
  auto first = std::make_unique<TestShard>(*model_, model_->AllExperts());
  // The second target is empty until somebody starts there.
  auto placeholder = std::make_unique<TestShard>(*model_, std::vector<int>{0});
  const std::string second_target = placeholder->target();
  placeholder.reset();
  const auto exchange = Connect(Options({first->target(), second_target}));
  first.reset();
  const ExchangeStep step(*model_, 0, 6, 4);
  absl::StatusOr<Rows> rows = absl::UnknownError("not yet");
  std::thread engine([&] { rows = step.Run(*exchange); });
  TestShard second(*model_, model_->AllExperts(), /*epoch=*/2, second_target);
  engine.join();
  ASSERT_OK(rows);
  EXPECT_TRUE(*rows == Expected(step));
}

TEST_F(ExpertExchangeTest, TheWaitHasAnEnd) {
  auto shard = std::make_unique<TestShard>(*model_, model_->AllExperts());
  GrpcExpertExchangeOptions options = Options({shard->target()});
  options.shard_wait = absl::Milliseconds(200);
  const auto exchange = Connect(std::move(options));
  shard.reset();
  const ExchangeStep step(*model_, 0, 3, 1);
  const absl::Time start = absl::Now();
  EXPECT_THAT(step.Run(*exchange), StatusIs(absl::StatusCode::kUnavailable,
                                            AllOf(HasSubstr("of layer 0"), HasSubstr("waited"))));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(200));
}

TEST_F(ExpertExchangeTest, AShardThatNeverAnswersIsGivenUp) {
  ScriptedShard shard(*model_, model_->AllExperts());
  GrpcExpertExchangeOptions options = Options({shard.target()});
  options.dispatch_timeout = absl::Milliseconds(100);
  options.shard_wait = absl::Milliseconds(300);
  const auto exchange = Connect(std::move(options));
  shard.Play(std::vector<ScriptedShard::Step>(1000, {Act::kSayNothing}));
  const ExchangeStep step(*model_, 0, 3, 1);
  EXPECT_THAT(step.Run(*exchange), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(ExpertExchangeTest, StopEndsTheWait) {
  GrpcExpertExchange exchange(Options({"127.0.0.1:1"}), nullptr, &metrics_);
  const ExchangeStep step(*model_, 0, 3, 1);
  absl::StatusOr<Rows> rows = absl::UnknownError("not yet");
  std::thread engine([&] { rows = step.Run(exchange); });
  exchange.Stop();
  engine.join();
  EXPECT_THAT(rows, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("draining")));
}

TEST_F(ExpertExchangeTest, AnotherModelIsRefused) {
  TestModel other(TinyMoeConfig(), /*seed=*/2);
  ASSERT_NE(other.fingerprint(), model_->fingerprint());
  TestShard shard(other, other.AllExperts());
  GrpcExpertExchange exchange(Options({shard.target()}), nullptr, &metrics_);
  // Not at once: until it has been asked, nobody knows.
  EXPECT_TRUE(Await([&] { return absl::IsFailedPrecondition(exchange.Ready()); }));
  EXPECT_THAT(exchange.Ready(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr(shard.target()), HasSubstr(model_->fingerprint()),
                             HasSubstr(other.fingerprint()))));
  const ExchangeStep step(*model_, 0, 3, 1);
  EXPECT_THAT(step.Run(exchange),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another model")));
  EXPECT_THAT(metrics_.Text(), HasSubstr("conclave_worker_shards_with_other_model 1\n"));
}

TEST_F(ExpertExchangeTest, AnotherWeightDtypeIsRefused) {
  TestShard shard(*model_, model_->AllExperts(), /*epoch=*/1, "127.0.0.1:0",
                  /*shared_memory=*/true, WeightDtype::kInt8);
  GrpcExpertExchange exchange(Options({shard.target()}), nullptr, &metrics_);
  EXPECT_TRUE(Await([&] { return absl::IsFailedPrecondition(exchange.Ready()); }));
  EXPECT_THAT(exchange.Ready(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("weight_dtype of shard"), HasSubstr(shard.target()),
                             HasSubstr("is int8, want bf16"))));
}

// A caller that runs experts itself, on its device, gets null for them and the rest from shards.
TEST_F(ExpertExchangeTest, ExpertsInPlaceAreLeftToTheCaller) {
  TestShard shard(*model_, {1, 2, 4, 5, 6});
  GrpcExpertExchangeOptions options = Options({shard.target()});
  options.experts_in_place = {0, 2, 3, 7};  // 2 is on the shard too
  const auto exchange = Connect(std::move(options));
  const ExchangeStep step(*model_, 1, 9, 4);
  std::vector<const BFloat16*> rows;
  ASSERT_OK(exchange->Run(step.batch, rows));
  const Rows expected = Expected(step);
  const int64_t hidden = model_->config().hidden_size;
  ASSERT_EQ(rows.size(), step.topk_ids.size());
  int num_null = 0;
  for (size_t slot = 0; slot < rows.size(); ++slot) {
    const int32_t expert = step.topk_ids[slot];
    const bool in_place = expert == 0 || expert == 2 || expert == 3 || expert == 7;
    EXPECT_EQ(rows[slot] == nullptr, in_place) << expert;
    num_null += in_place ? 1 : 0;
    if (in_place || rows[slot] == nullptr) continue;
    EXPECT_TRUE(std::equal(rows[slot], rows[slot] + hidden, expected.data() + slot * hidden));
  }
  EXPECT_GT(num_null, 0);
  EXPECT_THAT(metrics_.Text(),
              HasSubstr(absl::StrCat("conclave_worker_shard_rows_total{shard=\"local\"} ", num_null,
                                     "\n")));
}

TEST_F(ExpertExchangeTest, NamesTheExpertThatNobodyHas) {
  TestShard a(*model_, {0, 1, 2, 3}), b(*model_, {4, 6, 7});
  GrpcExpertExchangeOptions options = Options({a.target(), b.target()});
  options.shard_wait = absl::Milliseconds(50);
  GrpcExpertExchange exchange(std::move(options), nullptr, &metrics_);
  ASSERT_TRUE(AwaitUp(exchange, true));
  EXPECT_THAT(exchange.Ready(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("expert 5 of layer 0")));
  EXPECT_THAT(metrics_.Text(), HasSubstr("conclave_worker_missing_experts 1\n"));
  EXPECT_THAT(metrics_.Text(), HasSubstr("conclave_worker_shards_with_other_model 0\n"));
  ExchangeStep step(*model_, 1, 1, 1);
  step.topk_ids = {5, 6};
  step.batch.topk_ids = step.topk_ids.data();
  EXPECT_THAT(step.Run(exchange),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("expert 5 of layer 1")));
  step.topk_ids = {4, 6};  // what is there still works
  EXPECT_OK(step.Run(exchange));
}

TEST_F(ExpertExchangeTest, DescriptionsThatMakeNoSenseAreRefused) {
  ScriptedShard shard(*model_, model_->AllExperts());
  const v1::ShardDescription valid = shard.description();
  const auto expect_down = [&](const char* why, auto&& spoil) {
    v1::ShardDescription description = valid;
    spoil(description);
    shard.SetDescription(description);
    GrpcExpertExchange exchange(Options({shard.target()}), nullptr, &metrics_);
    std::string said;
    EXPECT_TRUE(Await([&] {
      said = exchange.Ready().ToString();
      return said.find(why) != std::string::npos;
    })) << said
        << ", want " << why;
  };
  expect_down("loading", [](auto& d) { d.set_ready(false); });
  expect_down("dtype", [](auto& d) { d.set_dtype("fp8"); });
  expect_down("expert_ids", [](auto& d) { d.add_expert_ids(8); });
  expect_down("expert_ids", [](auto& d) { d.set_expert_ids(1, 0); });
  shard.SetDescription(valid);
  EXPECT_OK(Connect(Options({shard.target()}))->Ready());
}

TEST_F(ExpertExchangeTest, LocalExchangeSaysWhatItLacks) {
  LocalExpertExchange all(model_->config(), model_->LoadRunner(model_->AllExperts()));
  EXPECT_OK(all.Ready());
  EXPECT_TRUE(all.Shards().empty());
  LocalExpertExchange some(model_->config(), model_->LoadRunner({0, 1, 2}));
  EXPECT_THAT(some.Ready(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("experts 3-7 of layer 0")));
  ExchangeStep step(*model_, 1, 1, 1);
  step.topk_ids = {2, 7};
  step.batch.topk_ids = step.topk_ids.data();
  EXPECT_THAT(step.Run(some), StatusIs(absl::StatusCode::kFailedPrecondition));
}

class ShardsOfANameTest : public ExpertExchangeTest {
 protected:
  static constexpr char kName[] = "dns:///shards:1";

  GrpcExpertExchangeOptions NameOptions() {
    GrpcExpertExchangeOptions options = Options({kName});
    options.resolver = resolver_;
    options.name_refresh = absl::Milliseconds(5);
    return options;
  }
  void Point(std::vector<std::string> targets) { resolver_->Set(kName, std::move(targets)); }
  // Runs layers, each with the right answer, until the shards that are up have these targets.
  void RunUntilUp(GrpcExpertExchange& exchange, const std::vector<std::string>& wanted) {
    const absl::Time give_up = absl::Now() + kPatience;
    std::vector<std::string> up;
    for (uint64_t seed = 0; absl::Now() < give_up; ++seed) {
      const ExchangeStep step(*model_, 0, 5, seed);
      ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(exchange));
      ASSERT_TRUE(rows == Expected(step));
      up.clear();
      for (const v1::ShardState& shard : exchange.Shards()) {
        up.push_back(shard.up() ? shard.target() : "down");
      }
      std::sort(up.begin(), up.end());
      if (up == wanted) return;
    }
    ADD_FAILURE() << "up: " << absl::StrJoin(up, ", ");
  }

  std::shared_ptr<FakeResolver> resolver_ = std::make_shared<FakeResolver>();
};

TEST_F(ShardsOfANameTest, EachAddressIsAShardAndWhoJoinsOrLeavesIsNoticed) {
  TestShard a(*model_, {0, 1, 2, 3}), b(*model_, {4, 5, 6, 7}), c(*model_, model_->AllExperts());
  Point({a.target(), b.target()});
  const auto exchange = Connect(NameOptions());
  std::vector<std::string> two = {a.target(), b.target()};
  std::vector<std::string> three = {a.target(), b.target(), c.target()};
  std::sort(two.begin(), two.end());
  std::sort(three.begin(), three.end());
  RunUntilUp(*exchange, two);
  Point(three);
  RunUntilUp(*exchange, three);
  Point({c.target()});
  RunUntilUp(*exchange, {c.target()});
  // No gauge says that one is down.
  EXPECT_THAT(metrics_.Text(), AllOf(HasSubstr("conclave_worker_shard_up{shard=\"0.2\"} 1"),
                                     testing::Not(HasSubstr("{shard=\"0.1\"} 0")),
                                     testing::Not(HasSubstr("{shard=\"0\"} 0"))));
  EXPECT_EQ(Retries(*exchange), 0u);
}

TEST_F(ShardsOfANameTest, ALayerWaitsForTheShardThatReplacesALostOne) {
  auto lost = std::make_unique<TestShard>(*model_, model_->AllExperts());
  TestShard next(*model_, model_->AllExperts());
  Point({lost->target()});
  const auto exchange = Connect(NameOptions());
  RunUntilUp(*exchange, {lost->target()});
  lost.reset();
  Point({next.target()});
  const ExchangeStep step(*model_, 1, 20, 8);
  ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
  EXPECT_TRUE(rows == Expected(step));
  RunUntilUp(*exchange, {next.target()});
  // It has the number of the one it replaced.
  EXPECT_THAT(metrics_.Text(), HasSubstr("conclave_worker_shard_up{shard=\"0\"} 1"));
}

TEST_F(ShardsOfANameTest, ANameWithoutAddressIsTheReason) {
  GrpcExpertExchange exchange(NameOptions(), nullptr, &metrics_);
  EXPECT_THAT(exchange.AwaitReady(absl::Now() + absl::Milliseconds(50)),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("shards of dns:///shards:1: ")));
  ASSERT_EQ(exchange.Shards().size(), 1u);
  EXPECT_EQ(exchange.Shards()[0].target(), kName);
  EXPECT_THAT(metrics_.Text(), HasSubstr("conclave_worker_shard_up{shard=\"0\"} 0"));
}

}  // namespace
}  // namespace conclave
