// Control, in each phase of a request.

#include <string>

#include "tests/router/test_router.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

v1::ChatRequest Chat() {
  v1::ChatRequest request = UserSays("hi");
  request.set_request_id("mine");
  return request;
}

v1::ControlRequest FinishThinking() {
  v1::ControlRequest request;
  request.set_request_id("mine");
  request.set_finish_thinking(true);
  return request;
}
v1::ControlRequest SetBudget(int64_t budget) {
  v1::ControlRequest request;
  request.set_request_id("mine");
  request.set_set_thinking_budget(budget);
  return request;
}
v1::ControlRequest CancelIt() {
  v1::ControlRequest request;
  request.set_request_id("mine");
  request.set_cancel(true);
  return request;
}

class ControlTest : public testing::Test {
 protected:
  ControlTest() { worker_.SetNext(ThinkThenAnswer("a long story of thoughts", "\n\nhello")); }
  FakeWorker worker_;
};

TEST_F(ControlTest, AnswerNow) {
  worker_.PauseAfter(7);
  TestRouter router({&worker_});
  auto call = StartChat(router, Chat());
  ASSERT_TRUE(worker_.WaitForPaused());
  EXPECT_OK(SendControl(router, FinishThinking()));
  worker_.Continue();
  const Transcript transcript = ReadAll(*call);
  ASSERT_OK(transcript.status);
  EXPECT_THAT(transcript.thinking, StartsWith("a long\n\nConsidering"));
  EXPECT_EQ(transcript.content, "hello");
  EXPECT_EQ(transcript.finished.thinking().ended_by(), v1::THINKING_END_CLIENT);
  EXPECT_EQ(router.Metric("conclave_router_requests_total{method=\"Control\",outcome=\"ok\"}"), 1);
}

TEST_F(ControlTest, ANewBudgetWhileThinking) {
  worker_.PauseAfter(3);
  TestRouter router({&worker_});
  auto call = StartChat(router, Chat());
  ASSERT_TRUE(worker_.WaitForPaused());
  EXPECT_OK(SendControl(router, SetBudget(6)));
  worker_.Continue();
  const Transcript transcript = ReadAll(*call);
  EXPECT_THAT(transcript.thinking, StartsWith("a long\n\nConsidering"));
  EXPECT_EQ(transcript.finished.thinking().budget(), 6);
  EXPECT_EQ(transcript.finished.thinking().used(), 6u);
  EXPECT_EQ(transcript.finished.thinking().ended_by(), v1::THINKING_END_BUDGET);
}

TEST_F(ControlTest, CancelFinishesWithTheUsageSoFar) {
  worker_.PauseAfter(7);
  TestRouter router({&worker_});
  auto call = StartChat(router, Chat());
  ASSERT_TRUE(worker_.WaitForPaused());
  EXPECT_OK(SendControl(router, CancelIt()));
  const Transcript transcript = ReadAll(*call);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.finished.reason(), v1::CHAT_FINISH_REASON_CANCELLED);
  EXPECT_EQ(transcript.finished.usage().completion_tokens(), transcript.ids.size());
  EXPECT_TRUE(worker_.WaitForCancelled());
  EXPECT_THAT(SendControl(router, CancelIt()), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(ControlTest, BeforeTheFirstToken) {
  worker_.PauseAfter(0);  // in the worker's queue
  TestRouter router({&worker_});
  auto call = StartChat(router, Chat());
  ASSERT_TRUE(worker_.WaitForPaused());
  EXPECT_OK(SendControl(router, FinishThinking()));
  worker_.Continue();
  const Transcript transcript = ReadAll(*call);
  EXPECT_THAT(transcript.thinking, StartsWith("Considering"));
  EXPECT_EQ(transcript.content, "hello");
}

bool Waits(TestRouter& router) {
  return Eventually([&] { return router.Metric("conclave_router_waiting") == 1; });
}

TEST_F(ControlTest, WhileItWaitsForAWorker) {
  worker_.SetDescription([](v1::WorkerDescription& d) { d.set_ready(false); });
  TestRouterOptions options;
  options.pool.targets = {worker_.target()};
  TestRouter router({}, options);
  auto call = StartChat(router, Chat());
  ASSERT_TRUE(Waits(router));
  EXPECT_OK(SendControl(router, SetBudget(4)));
  EXPECT_OK(SendControl(router, FinishThinking()));
  EXPECT_OK(SendControl(router, SetBudget(2)));
  worker_.SetDescription([](v1::WorkerDescription& d) { d.set_ready(true); });
  const Transcript transcript = ReadAll(*call);
  ASSERT_OK(transcript.status);
  EXPECT_THAT(transcript.thinking, StartsWith("Considering"));
  EXPECT_EQ(transcript.finished.thinking().ended_by(), v1::THINKING_END_CLIENT);
  EXPECT_EQ(transcript.finished.thinking().budget(), 2);
}

TEST_F(ControlTest, AThinkingModelCanBeStoppedBeforeItBegins) {
  const auto model = LoadTestModel("thinking-2507");
  worker_.SetDescription([](v1::WorkerDescription& d) { d.set_ready(false); });
  TestRouterOptions options;
  options.model = model.get();
  options.pool.targets = {worker_.target()};
  TestRouter router({}, options);
  auto call = StartChat(router, Chat());
  ASSERT_TRUE(Waits(router));
  EXPECT_OK(SendControl(router, FinishThinking()));
  worker_.SetDescription([](v1::WorkerDescription& d) { d.set_ready(true); });
  const Transcript transcript = ReadAll(*call);
  EXPECT_THAT(transcript.thinking, StartsWith("Considering"));
  EXPECT_EQ(transcript.finished.thinking().used(), 0u);
  EXPECT_EQ(transcript.content, "hello");
}

TEST_F(ControlTest, CancelWhileItWaitsForAWorker) {
  TestRouterOptions options;
  options.pool.targets = {"127.0.0.1:1"};
  TestRouter router({}, options);
  auto call = StartChat(router, Chat());
  ASSERT_TRUE(Waits(router));
  EXPECT_OK(SendControl(router, CancelIt()));
  const Transcript transcript = ReadAll(*call);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.finished.reason(), v1::CHAT_FINISH_REASON_CANCELLED);
  EXPECT_EQ(router.Metric("conclave_router_waiting"), 0);
}

TEST_F(ControlTest, WhatWasAskedSurvivesTheWorker) {
  worker_.PauseAfter(3);
  TestRouter router({&worker_});
  auto call = StartChat(router, Chat());
  ASSERT_TRUE(worker_.WaitForPaused());
  EXPECT_OK(SendControl(router, SetBudget(6)));
  // Lost before any event could tell that the budget has changed.
  worker_.BreakAfter(3, absl::UnavailableError("lost"));
  worker_.Continue();
  const Transcript transcript = ReadAll(*call);
  ASSERT_OK(transcript.status);
  EXPECT_THAT(transcript.thinking, StartsWith("a long\n\nConsidering"));
  EXPECT_EQ(transcript.finished.thinking().used(), 6u);
  EXPECT_EQ(transcript.finished.failovers(), 1u);
}

TEST_F(ControlTest, InTheAnswerThereIsNothingToFinish) {
  worker_.PauseAfter(28);  // "<think>a long story of thoughts</think>\n\n"
  TestRouter router({&worker_});
  auto call = StartChat(router, Chat());
  ASSERT_TRUE(worker_.WaitForPaused());
  EXPECT_OK(SendControl(router, FinishThinking()));
  worker_.Continue();
  const Transcript transcript = ReadAll(*call);
  EXPECT_EQ(transcript.thinking, "a long story of thoughts");
  EXPECT_EQ(transcript.content, "hello");
  EXPECT_EQ(transcript.finished.thinking().ended_by(), v1::THINKING_END_NATURAL);
}

TEST_F(ControlTest, Mistakes) {
  TestRouter router({&worker_});
  EXPECT_THAT(SendControl(router, FinishThinking()), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(SendControl(router, SetBudget(-2)), StatusIs(absl::StatusCode::kInvalidArgument));
  worker_.PauseAfter(3);
  auto call = StartChat(router, Chat());
  ASSERT_TRUE(worker_.WaitForPaused());
  v1::ControlRequest nothing;
  nothing.set_request_id("mine");
  EXPECT_THAT(SendControl(router, nothing),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("action")));
  worker_.Continue();
  EXPECT_OK(ReadAll(*call).status);
  EXPECT_THAT(SendControl(router, FinishThinking()), StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace conclave
