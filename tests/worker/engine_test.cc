#include "worker/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "absl/synchronization/notification.h"
#include "tests/support/test_worker.h"

namespace conclave {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

// Ids of the tiny model's control tokens (256 bytes, then the 26 of Qwen3 in their order).
constexpr uint32_t kThink = 256 + 24, kEndThink = 256 + 25;

class EngineTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new TempDir;
    ASSERT_OK(WriteSyntheticCheckpoint(TinyDenseConfig(), dir_->path() + "/dense"));
    ASSERT_OK(WriteSyntheticCheckpoint(TinyMoeConfig(), dir_->path() + "/moe"));
  }
  static void TearDownTestSuite() { delete dir_; }

  static WorkerRuntimeOptions Dense() { return SmallWorker(dir_->path() + "/dense"); }
  static WorkerRuntimeOptions Moe() { return SmallWorker(dir_->path() + "/moe"); }

  static TempDir* dir_;
};
TempDir* EngineTest::dir_ = nullptr;

// Twenty requests of many lengths: greedy, sampled, with penalties, with a thinking budget.
std::vector<v1::TokenRequest> MixedRequests() {
  std::vector<v1::TokenRequest> requests;
  for (int i = 0; i < 20; ++i) {
    v1::TokenRequest request = MakeRequest(absl::StrCat("r", i), 1 + i * 9, 12 + i % 7);
    if (i % 3 == 1) {
      request.mutable_sampling()->set_temperature(0.8f);
      request.mutable_sampling()->set_top_k(20);
      request.mutable_sampling()->set_top_p(0.95f);
    }
    if (i % 5 == 2) {
      request.mutable_sampling()->set_temperature(1.0f);
      request.mutable_sampling()->set_presence_penalty(1.5f);
      request.mutable_sampling()->set_repetition_penalty(1.1f);
    }
    if (i % 4 == 3) {
      v1::ThinkingParams* thinking = request.mutable_thinking();
      thinking->set_enabled(true);
      thinking->set_start_id(kThink);
      thinking->set_end_id(kEndThink);
      thinking->set_starts_inside(true);
      thinking->set_budget(4);
      thinking->add_forced_ids(10);
      thinking->add_forced_ids(kEndThink);
      thinking->add_forced_ids(10);
    }
    requests.push_back(request);
  }
  return requests;
}

std::vector<std::vector<uint32_t>> RunTogether(TestWorker& worker,
                                               const std::vector<v1::TokenRequest>& requests) {
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (const v1::TokenRequest& request : requests) sinks.push_back(worker.Submit(request));
  std::vector<std::vector<uint32_t>> ids;
  for (const auto& sink : sinks) {
    EXPECT_OK(sink->Wait());
    ids.push_back(sink->ids());
  }
  return ids;
}

std::vector<std::vector<uint32_t>> RunAlone(const WorkerRuntimeOptions& options,
                                            const std::vector<v1::TokenRequest>& requests) {
  TestWorker worker(options);
  std::vector<std::vector<uint32_t>> ids;
  for (const v1::TokenRequest& request : requests) ids.push_back(worker.Run(request));
  return ids;
}

TEST_F(EngineTest, TokensDoNotDependOnBatchChunkThreadsOrPreemption) {
  for (WorkerRuntimeOptions options : {Dense(), Moe()}) {
    const std::vector<v1::TokenRequest> requests = MixedRequests();
    const auto expected = RunAlone(options, requests);
    {
      SCOPED_TRACE("in a batch of 16");
      options.max_running = 16;
      TestWorker worker(options);
      EXPECT_EQ(RunTogether(worker, requests), expected);
    }
    {
      SCOPED_TRACE("prefill in chunks of 7 tokens, one thread");
      options.max_step_tokens = 7;
      options.threads = 1;
      TestWorker worker(options);
      EXPECT_EQ(RunTogether(worker, requests), expected);
    }
    {
      SCOPED_TRACE("with preemption");
      options.max_step_tokens = 64;
      options.kv_cache_tokens = 208;  // the longest request alone needs 13 blocks: all there are
      TestWorker worker(options);
      EXPECT_EQ(RunTogether(worker, requests), expected);
      EXPECT_THAT(worker.metrics().Text(),
                  testing::Not(HasSubstr("conclave_worker_preemptions_total 0")));
    }
  }
}

TEST_F(EngineTest, ResumesOnAnotherWorkerWithTheSameTokens) {
  TestWorker first(Moe()), second(Moe());
  for (v1::TokenRequest request : MixedRequests()) {
    const auto sink = first.Submit(request);
    ASSERT_OK(sink->Wait());
    const std::vector<uint32_t> expected = sink->ids();
    // Cut after every event, as if the worker had died there.
    std::vector<uint32_t> so_far;
    for (const v1::TokenEvent& event : sink->events()) {
      so_far.insert(so_far.end(), event.ids().begin(), event.ids().end());
      if (event.finish_reason() != v1::FINISH_REASON_NONE || so_far.empty()) continue;
      v1::TokenRequest resumed = request;
      resumed.mutable_generated_ids()->Add(so_far.begin(), so_far.end());
      *resumed.mutable_thinking_state() = event.thinking();
      std::vector<uint32_t> whole = so_far;
      const std::vector<uint32_t> rest = second.Run(resumed);
      whole.insert(whole.end(), rest.begin(), rest.end());
      ASSERT_EQ(whole, expected) << request.request_id() << " cut after " << so_far.size();
    }
  }
}

TEST_F(EngineTest, ThinkingBudgetForcesOneChunkAndIsCounted) {
  TestWorker worker(Dense());
  v1::TokenRequest request = MixedRequests()[3];
  const auto sink = worker.Submit(request);
  ASSERT_OK(sink->Wait());
  const std::vector<uint32_t> ids = sink->ids();
  ASSERT_GE(ids.size(), 8u);
  EXPECT_EQ(std::vector<uint32_t>(ids.begin() + 4, ids.begin() + 7),
            (std::vector<uint32_t>{10, kEndThink, 10}));
  const v1::ThinkingState last = sink->last_event().thinking();
  EXPECT_EQ(last.used(), 4);
  EXPECT_EQ(last.forced(), 2);
  EXPECT_EQ(last.ended_by(), v1::THINKING_END_BUDGET);
  EXPECT_THAT(worker.metrics().Text(),
              HasSubstr("conclave_worker_thinking_ended_total{ended_by=\"budget\"} 1"));
}

// Takes a few ids, and the rest when it is told to: an engine is too quick to be caught in flight.
class HeldSink : public CollectingSink {
 public:
  bool Writable() const override { return go.HasBeenNotified() || ids().size() < 5; }
  absl::Notification go;
};

TEST_F(EngineTest, ControlEndsThinkingInFlight) {
  TestWorker worker(Dense());
  v1::TokenRequest request = MixedRequests()[3];
  request.set_max_tokens(3000);
  request.mutable_thinking()->set_budget(-1);
  const auto sink = std::make_shared<HeldSink>();
  ASSERT_OK(worker.engine().Submit(request, absl::InfiniteFuture(), sink));
  ASSERT_TRUE(sink->WaitForIds(5));
  ASSERT_OK(worker.engine().FinishThinking("r3"));
  sink->go.Notify();
  const auto forced = [&] {
    for (const v1::TokenEvent& event : sink->events()) {
      if (event.num_forced() > 0) return event.thinking().ended_by() == v1::THINKING_END_CLIENT;
    }
    return false;
  };
  for (size_t count = 6; !forced() && count < 3000; count += 5) sink->WaitForIds(count);
  EXPECT_TRUE(forced());
  sink->Cancel();
  EXPECT_THAT(sink->Wait(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(worker.engine().FinishThinking("r3"), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(EngineTest, StopIdEndsTheRequestAndIsReported) {
  TestWorker worker(Dense());
  v1::TokenRequest request = MakeRequest("a", 10, 30);
  const std::vector<uint32_t> all = worker.Run(request);
  request.add_stop_ids(all[5]);
  const auto sink = worker.Submit(request);
  ASSERT_OK(sink->Wait());
  const auto first = std::find(all.begin(), all.end(), all[5]);
  EXPECT_EQ(sink->ids(), std::vector<uint32_t>(all.begin(), first + 1));
  EXPECT_EQ(sink->last_event().finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(sink->last_event().stop_id(), all[5]);
  request.set_ignore_eos(true);
  EXPECT_EQ(worker.Run(request), all);
}

TEST_F(EngineTest, LogprobsOfThePromptAgreeWithThoseOfGeneration) {
  for (const int max_step_tokens : {512, 7}) {
    WorkerRuntimeOptions options = Moe();
    options.max_step_tokens = max_step_tokens;
    TestWorker worker(options);
    v1::TokenRequest request = MakeRequest("a", 21, 10);
    request.mutable_sampling()->set_logprobs(true);
    request.mutable_sampling()->set_top_logprobs(3);
    const auto generated = worker.Submit(request);
    ASSERT_OK(generated->Wait());

    v1::TokenRequest score = MakeRequest("b", 21, 0);
    for (uint32_t id : generated->ids()) score.add_prompt_ids(id);
    score.set_prompt_logprobs(true);
    const auto scored = worker.Submit(score);
    ASSERT_OK(scored->Wait());
    const v1::TokenEvent last = scored->last_event();
    ASSERT_THAT(last.prompt_logprobs(), SizeIs(30));
    EXPECT_EQ(last.ids_size(), 0);
    size_t token = 0;
    for (const v1::TokenEvent& event : generated->events()) {
      ASSERT_EQ(event.logprobs_size(), event.ids_size());
      for (int i = 0; i < event.ids_size(); ++i, ++token) {
        EXPECT_EQ(event.logprobs(i).logprob(), last.prompt_logprobs(20 + token));
        ASSERT_THAT(event.logprobs(i).top(), SizeIs(3));
        EXPECT_EQ(event.logprobs(i).top(0).id(), event.ids(i)) << "greedy draws the likeliest";
      }
    }
    EXPECT_EQ(token, 10u);
  }
}

TEST_F(EngineTest, ForcedIdsCarryTheirLogprobs) {
  TestWorker worker(Dense());
  v1::TokenRequest request = MixedRequests()[3];
  request.mutable_sampling()->set_logprobs(true);
  const auto sink = worker.Submit(request);
  ASSERT_OK(sink->Wait());
  bool any_forced = false;
  for (const v1::TokenEvent& event : sink->events()) {
    EXPECT_EQ(event.logprobs_size(), event.ids_size());
    any_forced |= event.num_forced() == 3;
    for (const v1::TokenLogprobs& logprobs : event.logprobs()) EXPECT_LT(logprobs.logprob(), 0);
  }
  EXPECT_TRUE(any_forced);
}

TEST_F(EngineTest, PaddingIdsAreNeverDrawn) {
  TestWorker worker(Dense());
  v1::TokenRequest request = MakeRequest("a", 3, 400);
  request.mutable_sampling()->set_temperature(2.0f);
  for (uint32_t id : worker.Run(request)) ASSERT_LT(id, 282u);  // vocab_size is 320
}

TEST_F(EngineTest, RefusesDuplicatesOverloadAndWorkWhileDraining) {
  WorkerRuntimeOptions options = Dense();
  options.max_running = 1;
  options.max_waiting = 1;
  TestWorker worker(options);
  const auto first = worker.Submit(MakeRequest("a", 3, 4000));
  const auto submit = [&](const char* id) {
    return worker.engine().Submit(MakeRequest(id, 3, 5), absl::InfiniteFuture(),
                                  std::make_shared<CollectingSink>());
  };
  EXPECT_THAT(submit("a"), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("\"a\"")));
  EXPECT_OK(submit("b"));
  EXPECT_THAT(submit("c"), StatusIs(absl::StatusCode::kResourceExhausted));
  worker.engine().StartDraining();
  EXPECT_THAT(submit("d"), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("draining")));
  first->Cancel();
  EXPECT_TRUE(worker.engine().AwaitIdle(absl::Now() + absl::Seconds(60)));
}

TEST_F(EngineTest, DeadlineEndsARequest) {
  TestWorker worker(Dense());
  auto sink = std::make_shared<CollectingSink>();
  ASSERT_OK(worker.engine().Submit(MakeRequest("a", 3, 4000), absl::Now() + absl::Milliseconds(30),
                                   sink));
  EXPECT_THAT(sink->Wait(), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(EngineTest, PromptPastTheKvCacheIsRefused) {
  WorkerRuntimeOptions options = Dense();
  options.kv_cache_tokens = 64;
  TestWorker worker(options);
  EXPECT_THAT(worker.engine().Submit(MakeRequest("a", 60, 5), absl::InfiniteFuture(),
                                     std::make_shared<CollectingSink>()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("want at most 64")));
  EXPECT_THAT(worker.Run(MakeRequest("b", 60, 4)), SizeIs(4));
}

}  // namespace
}  // namespace conclave
