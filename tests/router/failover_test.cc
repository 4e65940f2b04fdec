// Workers that are lost, full or gone: what the client sees of it.

#include <string>
#include <vector>

#include "common/limits.h"
#include "tests/router/test_router.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;

constexpr int kMaxTokens = 60;

v1::ChatRequest LongChat() {
  v1::ChatRequest request = UserSays("tell me");
  request.set_max_tokens(kMaxTokens);
  request.mutable_sampling()->set_seed(11);
  request.mutable_sampling()->set_logprobs(true);
  return request;
}

// What the same request gives when nothing goes wrong.
Transcript Undisturbed(const v1::ChatRequest& request, const NextId& next) {
  FakeWorker worker;
  worker.SetNext(next);
  TestRouter router({&worker});
  return RunChat(router, request);
}

void ExpectSame(const Transcript& actual, const Transcript& expected) {
  ASSERT_OK(actual.status);
  EXPECT_EQ(actual.kinds, expected.kinds);
  EXPECT_EQ(actual.ids, expected.ids);
  EXPECT_EQ(actual.logprobs, expected.logprobs);
  EXPECT_EQ(actual.thinking, expected.thinking);
  EXPECT_EQ(actual.content, expected.content);
  EXPECT_EQ(actual.finished.reason(), expected.finished.reason());
  EXPECT_EQ(actual.finished.usage().SerializeAsString(),
            expected.finished.usage().SerializeAsString());
  EXPECT_EQ(actual.finished.thinking().SerializeAsString(),
            expected.finished.thinking().SerializeAsString());
}

class FailoverTest : public testing::Test {
 protected:
  FailoverTest() {
    for (FakeWorker* worker : {&first_, &second_}) {
      worker->SetNext(Ramble());
      worker->SetCachedPromptTokens(2);
    }
  }
  FakeWorker first_, second_;
};

TEST_F(FailoverTest, AStreamThatBreaksGoesOnElsewhere) {
  FakeWorker reference;
  reference.SetNext(Ramble());
  reference.SetCachedPromptTokens(2);
  TestRouter undisturbed({&reference});
  const Transcript expected = RunChat(undisturbed, LongChat());
  for (const absl::Status& how :
       {absl::UnavailableError("experts lost"), absl::InternalError("device lost"),
        absl::UnknownError("?"), absl::CancelledError("shutting down"), absl::OkStatus()}) {
    for (int after : {0, 1, 17, kMaxTokens - 1}) {
      TestRouter router({&first_, &second_});
      first_.BreakAfter(after, how);  // of equals, the first gets the first request
      const Transcript transcript = RunChat(router, LongChat());
      ExpectSame(transcript, expected);
      EXPECT_EQ(transcript.finished.failovers(), 1u) << how << " after " << after;
      EXPECT_EQ(router.Metric("conclave_router_failovers_total"), 1);
    }
  }
}

TEST_F(FailoverTest, ItMayBreakMoreThanOnce) {
  first_.BreakAfter(20, absl::UnavailableError("lost"));
  second_.BreakAfter(20, absl::UnavailableError("lost"));
  TestRouter router({&first_, &second_});
  const Transcript transcript = RunChat(router, LongChat());
  FakeWorker reference;
  reference.SetNext(Ramble());
  reference.SetCachedPromptTokens(2);
  TestRouter undisturbed({&reference});
  ExpectSame(transcript, RunChat(undisturbed, LongChat()));
  EXPECT_EQ(transcript.finished.failovers(), 2u);
}

TEST_F(FailoverTest, TheReplayCarriesIdsAndState) {
  v1::ChatRequest request = LongChat();
  request.mutable_thinking()->set_budget(10);
  const NextId next = ThinkThenAnswer("a long story of thoughts", "\n\nshort answer");
  request.set_max_tokens(500);
  const Transcript expected = Undisturbed(request, next);
  // Inside thinking, at the budget, after the forced text.
  for (int after : {5, 11, 130}) {
    FakeWorker worker;
    worker.SetNext(next);
    worker.BreakAfter(after, absl::UnavailableError("lost"));
    TestRouter router({&worker});
    ExpectSame(RunChat(router, request), expected);
    const std::vector<v1::TokenRequest> requests = worker.requests();
    ASSERT_EQ(requests.size(), 2u) << after;
    EXPECT_NE(requests[0].request_id(), requests[1].request_id());
    EXPECT_GE(requests[1].generated_ids_size(), after);
    EXPECT_TRUE(requests[1].has_thinking_state());
    EXPECT_EQ(requests[1].sampling().SerializeAsString(),
              requests[0].sampling().SerializeAsString());
    EXPECT_EQ(requests[1].max_tokens(), requests[0].max_tokens());
  }
}

TEST_F(FailoverTest, AKilledWorkerIsWaitedFor) {
  first_.PauseAfter(20);
  TestRouter router({&first_});
  auto call = StartChat(router, LongChat());
  ASSERT_TRUE(first_.WaitForPaused());
  first_.Stop();
  EXPECT_TRUE(Eventually([&] { return router.Metric("conclave_router_waiting") == 1; }));
  first_.Continue();
  first_.Start();
  const Transcript transcript = ReadAll(*call);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.ids.size(), static_cast<size_t>(kMaxTokens));
  EXPECT_EQ(transcript.finished.failovers(), 1u);
  EXPECT_EQ(router.Metric("conclave_router_waiting"), 0);
}

TEST_F(FailoverTest, AClientMayLeaveWhileItsRequestWaits) {
  first_.PauseAfter(20);
  TestRouter router({&first_});
  auto call = StartChat(router, LongChat());
  ASSERT_TRUE(first_.WaitForPaused());
  first_.Stop();
  ASSERT_TRUE(Eventually([&] { return router.Metric("conclave_router_waiting") == 1; }));
  call->context.TryCancel();
  EXPECT_THAT(ReadAll(*call).status, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(Eventually([&] { return router.engine().inflight() == 0; }));
  EXPECT_EQ(router.Metric("conclave_router_waiting"), 0);
}

TEST_F(FailoverTest, WaitingIsBounded) {
  TestRouterOptions options;
  options.engine.tokens.failover_wait = absl::Milliseconds(100);
  first_.PauseAfter(20);
  TestRouter router({&first_}, options);
  auto call = StartChat(router, LongChat());
  ASSERT_TRUE(first_.WaitForPaused());
  first_.Stop();
  EXPECT_THAT(ReadAll(*call).status,
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no worker serves")));
}

TEST_F(FailoverTest, AttemptsAreBounded) {
  first_.RefuseWith(absl::UnavailableError("poisoned"));
  TestRouter router({&first_});
  EXPECT_THAT(RunChat(router, LongChat()).status,
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("poisoned")));
  EXPECT_EQ(first_.requests().size(), static_cast<size_t>(limits::kMaxWorkerAttempts));
}

TEST_F(FailoverTest, AFullWorkerIsNotABrokenOne) {
  first_.RefuseWith(absl::ResourceExhaustedError("queue full"));
  second_.RefuseWith(absl::ResourceExhaustedError("queue full"));
  TestRouter router({&first_, &second_});
  Transcript transcript = RunChat(router, LongChat());
  EXPECT_THAT(transcript.status,
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("queue full")));
  EXPECT_EQ(transcript.retry_after, absl::Seconds(1));
  EXPECT_EQ(first_.requests().size(), 1u);
  EXPECT_EQ(second_.requests().size(), 1u);
  EXPECT_EQ(router.Metric("conclave_router_workers_up"), 2);

  second_.RefuseWith(absl::OkStatus());
  for (int i = 0; i < 3; ++i) {
    transcript = RunChat(router, LongChat());
    EXPECT_OK(transcript.status);
    EXPECT_EQ(transcript.finished.failovers(), 0u);
  }
}

TEST_F(FailoverTest, AnAcceptedRequestWaitsForAFullWorker) {
  first_.PauseAfter(20);
  TestRouter router({&first_});
  auto call = StartChat(router, LongChat());
  ASSERT_TRUE(first_.WaitForPaused());
  first_.RefuseWith(absl::ResourceExhaustedError("queue full"));
  first_.BreakAfter(20, absl::UnavailableError("lost"));
  first_.Continue();
  ASSERT_TRUE(first_.WaitForRequests(3));  // asked again and again
  first_.RefuseWith(absl::OkStatus());
  const Transcript transcript = ReadAll(*call);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.ids.size(), static_cast<size_t>(kMaxTokens));
}

TEST_F(FailoverTest, TheRequestsOwnMistakesAreNotRetried) {
  TestRouter router({&first_});
  int asked = 0;
  for (const absl::Status& status :
       {absl::InvalidArgumentError("bad"), absl::FailedPreconditionError("other model"),
        absl::NotFoundError("?"), absl::DataLossError("?"), absl::UnimplementedError("?")}) {
    first_.RefuseWith(status);
    EXPECT_THAT(RunChat(router, LongChat()).status, StatusIs(status.code()));
    EXPECT_EQ(first_.requests().size(), static_cast<size_t>(++asked));
    EXPECT_EQ(router.Metric("conclave_router_workers_up"), 1);
  }
}

TEST_F(FailoverTest, OtherWeightsNeverContinueARequest) {
  TestRouterOptions options;
  options.engine.tokens.failover_wait = absl::Milliseconds(200);
  first_.PauseAfter(20);
  TestRouter router({&first_}, options);
  auto call = StartChat(router, LongChat());
  ASSERT_TRUE(first_.WaitForPaused());
  first_.SetDescription(
      [](v1::WorkerDescription& d) { d.mutable_model()->set_fingerprint("beef"); });
  first_.BreakAfter(20, absl::UnavailableError("restarted"));
  first_.Continue();
  EXPECT_THAT(ReadAll(*call).status, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(first_.requests().size(), 1u);
}

TEST_F(FailoverTest, PromptLogprobsComeOnce) {
  FakeWorker worker;
  worker.SetNext(Say("hello world"));
  worker.BreakAfter(4, absl::UnavailableError("lost"));
  TestRouter router({&worker});
  v1::GenerateRequest request = Complete("abc");
  request.set_prompt_logprobs(true);
  const Transcript transcript = RunGenerate(router, request);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.content, "hello world");
  EXPECT_EQ(transcript.prompt_logprobs.size(), 2u);
  EXPECT_FALSE(worker.requests()[1].prompt_logprobs());
}

}  // namespace
}  // namespace conclave
