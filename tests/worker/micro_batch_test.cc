// Steps in two micro-batches: the tokens of whole ones, whatever happens to the shards meanwhile.
#include <thread>

#include "tests/support/exchange_fixture.h"
#include "tests/support/scripted_shard.h"
#include "tests/support/test_worker.h"

namespace conclave {
namespace {

using testing::HasSubstr;
using Act = ScriptedShard::Act;

Rows Copy(const std::vector<const BFloat16*>& expert_rows, int hidden_size) {
  Rows rows;
  for (const BFloat16* row : expert_rows) rows.insert(rows.end(), row, row + hidden_size);
  return rows;
}

// Two steps on their way at a time, and their rows.
struct TwoParts {
  TwoParts(const TestModel& model, int layer, uint64_t seed)
      : steps{{model, layer, 5, seed}, {model, layer, 9, seed + 1}} {}

  absl::Status Start(OverlappingExchange& exchange, int part) {
    return exchange.Start(part, steps[part].batch, expert_rows[part]);
  }

  ExchangeStep steps[2];
  std::vector<const BFloat16*> expert_rows[2];
};

class MicroBatchExchangeTest : public ExchangeFixture {
 protected:
  // Both parts through `exchange`, the second layer begun by one while the other is in the first.
  void ExpectTheBitsOfOneProcess(OverlappingExchange& exchange) {
    const int hidden = model_->config().hidden_size;
    TwoParts first(*model_, 0, 1), second(*model_, 1, 7);
    for (const int part : {0, 1}) ASSERT_OK(first.Start(exchange, part));
    for (const int part : {0, 1}) {
      ASSERT_OK(exchange.Finish(part));
      EXPECT_TRUE(Copy(first.expert_rows[part], hidden) == Expected(first.steps[part])) << part;
      ASSERT_OK(second.Start(exchange, part));
    }
    for (const int part : {0, 1}) {
      ASSERT_OK(exchange.Finish(part));
      EXPECT_TRUE(Copy(second.expert_rows[part], hidden) == Expected(second.steps[part])) << part;
    }
  }
};

TEST_F(MicroBatchExchangeTest, TwoPartsGiveTheBitsOfOneProcess) {
  TestShard a(*model_, {0, 1, 2, 3}), b(*model_, {4, 5, 6, 7});
  const std::vector<std::string> both = {a.target(), b.target()};
  GrpcExpertExchangeOptions by_grpc = Options(both);
  by_grpc.shared_memory = false;
  ExpectTheBitsOfOneProcess(*ConnectBy("grpc", by_grpc));
  ExpectTheBitsOfOneProcess(*ConnectBy("shared_memory", Options(both)));
  ExpectTheBitsOfOneProcess(*Connect(Options({a.target()}), /*local=*/{4, 5, 6, 7}));
}

TEST_F(MicroBatchExchangeTest, ALossIsMadeUpForInWhicheverPart) {
  for (const ScriptedShard::Step misdeed : std::vector<ScriptedShard::Step>{
           {Act::kEndStream}, {Act::kAnswerHalfThenEnd}, {Act::kAnswer, grpc::UNAVAILABLE}}) {
    for (size_t good_answers = 0; good_answers < 4; ++good_answers) {
      ScriptedShard shard(*model_, model_->AllExperts());
      const auto exchange = Connect(Options({shard.target()}));
      std::vector<ScriptedShard::Step> steps(good_answers);
      steps.push_back(misdeed);
      shard.Play(steps);
      ExpectTheBitsOfOneProcess(*exchange);
      EXPECT_EQ(shard.steps_left(), 0u);
      EXPECT_GE(Retries(*exchange), 1u);
    }
  }
}

// The shard's end is seen when the second part is started: the first one's answers are lost too.
TEST_F(MicroBatchExchangeTest, AShardThatGoesBetweenTheStarts) {
  const std::vector<int> all = model_->AllExperts();
  auto victim = std::make_unique<ScriptedShard>(*model_, all);
  victim->Play(std::vector<ScriptedShard::Step>(100, {Act::kSayNothing}));
  TestShard survivor(*model_, all);
  const auto exchange = Connect(Options({victim->target(), survivor.target()}));
  ASSERT_TRUE(AwaitUp(*exchange, true));
  TwoParts parts(*model_, 1, 3);
  ASSERT_OK(parts.Start(*exchange, 0));
  victim.reset();
  ASSERT_TRUE(AwaitUp(*exchange, false));
  ASSERT_OK(parts.Start(*exchange, 1));
  for (const int part : {0, 1}) {
    ASSERT_OK(exchange->Finish(part));
    EXPECT_TRUE(Copy(parts.expert_rows[part], model_->config().hidden_size) ==
                Expected(parts.steps[part]));
  }
  EXPECT_GE(Retries(*exchange), 1u);
}

TEST_F(MicroBatchExchangeTest, WhatIsGivenUpIsForgotten) {
  ScriptedShard shard(*model_, model_->AllExperts());
  const auto exchange = Connect(Options({shard.target()}));
  shard.Play({{Act::kAnswer}, {Act::kAnswer, grpc::INVALID_ARGUMENT}});
  {
    TwoParts parts(*model_, 0, 1);
    for (const int part : {0, 1}) ASSERT_OK(parts.Start(*exchange, part));
    absl::Status finished = exchange->Finish(0);
    if (finished.ok()) finished = exchange->Finish(1);
    EXPECT_THAT(finished, StatusIs(absl::StatusCode::kInvalidArgument));
    exchange->GiveUp();
  }
  ExpectTheBitsOfOneProcess(*exchange);
}

class MicroBatchWorkerTest : public ExchangeFixture {
 protected:
  // One request alone in a step, many together, prompts of one chunk and of several.
  static std::vector<v1::TokenRequest> Requests() {
    std::vector<v1::TokenRequest> requests;
    for (int i = 0; i < 12; ++i) {
      requests.push_back(MakeRequest(absl::StrCat("r", i), 1 + i * 23, 10 + i));
      if (i % 2 == 1) requests.back().mutable_sampling()->set_temperature(0.8f);
    }
    return requests;
  }

  static WorkerRuntimeOptions Worker(std::vector<std::string> shards, const std::string& mode) {
    WorkerRuntimeOptions options = SmallWorker(model_->dir());
    options.shards = std::move(shards);
    options.micro_batch = mode;
    options.max_step_tokens = 64;
    options.prefix_cache = false;
    return options;
  }

  // The ids of all requests, in flight together.
  static std::vector<std::vector<uint32_t>> RunAll(TestWorker& worker) {
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (const v1::TokenRequest& request : Requests()) sinks.push_back(worker.Submit(request));
    std::vector<std::vector<uint32_t>> ids;
    for (const auto& sink : sinks) {
      EXPECT_OK(sink->Wait());
      ids.push_back(sink->ids());
    }
    return ids;
  }

  static std::vector<std::vector<uint32_t>> IdsInProcess() {
    TestWorker worker(Worker({}, "on"));
    const auto ids = RunAll(worker);
    // Nobody computes elsewhere: nothing to overlap with, and no reader of the weights to gain.
    EXPECT_THAT(worker.metrics().Text(), HasSubstr("conclave_worker_split_steps_total 0\n"));
    return ids;
  }
};

TEST_F(MicroBatchWorkerTest, TheTokensAreThoseOfWholeSteps) {
  const auto expected = IdsInProcess();
  TestShard a(*model_, {0, 1, 2, 3}), b(*model_, {4, 5, 6, 7});
  for (const char* mode : {"off", "on", "auto"}) {
    TestWorker worker(Worker({a.target(), b.target()}, mode));
    EXPECT_EQ(RunAll(worker), expected) << mode;
    const bool none =
        worker.metrics().Text().find("conclave_worker_split_steps_total 0\n") != std::string::npos;
    if (mode != std::string("auto")) {  // which depends on this machine
      EXPECT_EQ(none, mode == std::string("off")) << mode;
    }
  }
}

TEST_F(MicroBatchWorkerTest, TheTokensSurviveAShardsDeath) {
  const auto expected = IdsInProcess();
  auto victim = std::make_unique<TestShard>(*model_, model_->AllExperts());
  const std::string target = victim->target();
  TestShard replica(*model_, model_->AllExperts());
  TestWorker worker(Worker({target, replica.target()}, "on"));
  const auto first = worker.Submit(MakeRequest("first", 40, 400));
  ASSERT_TRUE(first->WaitForIds(5));  // in the middle of it, the shard goes and returns
  std::thread killer([&] {
    victim.reset();
    victim = std::make_unique<TestShard>(*model_, model_->AllExperts(), /*epoch=*/2, target);
  });
  EXPECT_EQ(RunAll(worker), expected);
  killer.join();
  EXPECT_OK(first->Wait());
  TestWorker alone(Worker({}, "off"));
  EXPECT_EQ(first->ids(), alone.Run(MakeRequest("first", 40, 400)));
}

TEST_F(MicroBatchWorkerTest, AModeThatIsNoneIsRefused) {
  EXPECT_THAT(WorkerRuntime::Open(Worker({}, "maybe")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("micro_batch is maybe")));
}

}  // namespace
}  // namespace conclave
