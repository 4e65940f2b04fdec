// What of a conversation's next prompt a worker computes before it comes.

#include "router/prefill_ahead.h"

#include <algorithm>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/next_turn.h"
#include "router/prompt_builder.h"
#include "tests/router/test_router.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

v1::ChatRequest Conversation(std::vector<std::pair<std::string, std::string>> messages) {
  v1::ChatRequest request;
  for (const auto& [role, content] : messages) {
    v1::ChatMessage* message = request.add_messages();
    message->set_role(role);
    message->set_content(content);
  }
  return request;
}

PreparedRequest Prepare(const v1::ChatRequest& request) {
  auto prepared = PrepareChat(TestModel(), request, kTestContext);
  EXPECT_OK(prepared.status());
  return *std::move(prepared);
}
std::vector<uint32_t> PromptIds(const PreparedRequest& prepared) {
  return {prepared.tokens.prompt_ids().begin(), prepared.tokens.prompt_ids().end()};
}
bool IsPrefix(const std::vector<uint32_t>& prefix, const std::vector<uint32_t>& ids) {
  return prefix.size() <= ids.size() && std::equal(prefix.begin(), prefix.end(), ids.begin());
}

TEST(NextTurnTest, IsWhatTheNextPromptBeginsWith) {
  for (const bool thinks : {true, false}) {
    v1::ChatRequest request = Conversation({{"system", "be brief"},
                                            {"user", "hi <|im_start|>"},
                                            {"assistant", "<think>a</think>\n\nb"},
                                            {"user", "what is it?"}});
    request.mutable_thinking()->set_enable_thinking(thinks);
    PreparedRequest prepared = Prepare(request);
    const auto ids =
        NextTurnIds(TestModel(), *prepared.conversation, "it is\n\nthis", PromptIds(prepared));
    ASSERT_OK(ids.status());
    for (const char* next : {"and?", " and?", "\nand", ""}) {
      v1::ChatRequest second = request;
      v1::ChatMessage* answer = second.add_messages();
      answer->set_role("assistant");
      answer->set_content("it is\n\nthis");
      answer->set_reasoning_content("for the next turn this is gone");
      v1::ChatMessage* user = second.add_messages();
      user->set_role("user");
      user->set_content(next);
      EXPECT_TRUE(IsPrefix(*ids, PromptIds(Prepare(second)))) << next;
    }
  }
}

TEST(NextTurnTest, LosesTheThinkingOfAWholeToolLoop) {
  v1::ChatRequest request =
      Conversation({{"user", "weather?"}, {"assistant", "I look"}, {"tool", "rain"}});
  request.mutable_messages(1)->set_reasoning_content("where?");
  PreparedRequest prepared = Prepare(request);
  const auto ids =
      NextTurnIds(TestModel(), *prepared.conversation, "it rains", PromptIds(prepared));
  ASSERT_OK(ids.status());
  v1::ChatRequest second = request;
  for (const auto& [role, content] :
       {std::pair("assistant", "it rains"), std::pair("user", "ok")}) {
    second.add_messages()->set_role(role);
    second.mutable_messages()->rbegin()->set_content(content);
  }
  EXPECT_TRUE(IsPrefix(*ids, PromptIds(Prepare(second))));
  EXPECT_FALSE(IsPrefix(PromptIds(prepared), *ids));
}

TestRouterOptions Ahead() {
  TestRouterOptions options;
  options.engine.prefill_ahead = true;
  return options;
}

const char kAnswer[] = "\n\nan answer that is longer than two blocks of the cache";

TEST(PrefillAheadTest, TheWorkerThatAnsweredComputesTheNextPrompt) {
  FakeWorker first, second;
  for (FakeWorker* worker : {&first, &second}) worker->SetNext(ThinkThenAnswer("\nhmm\n", kAnswer));
  TestRouter router({&first, &second}, Ahead());
  const Transcript transcript = RunChat(router, UserSays("hi"));
  ASSERT_OK(transcript.status);
  ASSERT_TRUE(Eventually(
      [&] { return router.Metric("conclave_router_prefill_ahead_total{outcome=\"done\"}") == 1; }));
  FakeWorker& home = first.requests().empty() ? second : first;
  ASSERT_EQ(home.requests().size(), 2u);
  const v1::TokenRequest ahead = home.requests()[1];
  EXPECT_TRUE(ahead.prefill_only());
  EXPECT_EQ(ahead.max_tokens(), 0u);
  v1::ChatRequest next =
      Conversation({{"user", "hi"}, {"assistant", transcript.content}, {"user", "more"}});
  EXPECT_TRUE(
      IsPrefix({ahead.prompt_ids().begin(), ahead.prompt_ids().end()}, PromptIds(Prepare(next))));
  EXPECT_TRUE(Eventually([&] {
    const v1::ClusterStatus cluster = router.Cluster();
    return cluster.workers(0).inflight() + cluster.workers(1).inflight() == 0;
  }));
}

TEST(PrefillAheadTest, OnlyWhereItIsWorthIt) {
  FakeWorker worker;
  TestRouter router({&worker}, Ahead());
  size_t requests = 0;
  const auto run = [&](const v1::ChatRequest& request) {
    EXPECT_OK(RunChat(router, request).status);
    ++requests;
  };
  worker.SetNext(ThinkThenAnswer("\nhmm\n", "\n\nshort"));
  run(UserSays("hi"));
  // A call: its result comes in the same turn.
  worker.SetNext(ThinkThenAnswer(
      "\nhmm\n", "\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>"));
  v1::ChatRequest call = UserSays("hi");
  call.add_tools(R"({"type": "function", "function": {"name": "f"}})");
  run(call);
  // One that is worth it, to wait for.
  worker.SetNext(ThinkThenAnswer("\nhmm\n", kAnswer));
  run(UserSays("hi"));
  ASSERT_TRUE(worker.WaitForRequests(static_cast<int>(requests) + 1));
  for (size_t i = 0; i < requests; ++i) EXPECT_FALSE(worker.requests()[i].prefill_only()) << i;
  EXPECT_TRUE(worker.requests().back().prefill_only());
}

TEST(PrefillAheadTest, AWorkerWithOtherWorkIsLeftAlone) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer("\nhmm\n", kAnswer));
  worker.SetDescription([](v1::WorkerDescription& d) { d.set_waiting(3); });
  TestRouter router({&worker}, Ahead());
  ASSERT_OK(RunChat(router, UserSays("hi")).status);
  ASSERT_TRUE(Eventually(
      [&] { return router.Metric("conclave_router_prefill_ahead_total{outcome=\"busy\"}") == 1; }));
  EXPECT_EQ(worker.requests().size(), 1u);
}

}  // namespace
}  // namespace conclave
