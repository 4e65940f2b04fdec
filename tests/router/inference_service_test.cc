// Requests through real gRPC on both sides: client, router, fake worker.

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "common/limits.h"
#include "rpc/grpc_status.h"
#include "tests/router/test_router.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(InferenceService, ChatsWithThinking) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer("\nhmm\n", "\n\nhello"));
  worker.SetCachedPromptTokens(5);
  TestRouter router({&worker});
  v1::ChatRequest request = UserSays("hi");
  request.mutable_sampling()->set_seed(42);
  request.set_request_id("mine");
  const Transcript transcript = RunChat(router, request);
  ASSERT_OK(transcript.status);
  EXPECT_THAT(transcript.kinds, ElementsAre("started", "thinking_delta", "thinking_done",
                                            "content_delta", "finished"));
  EXPECT_EQ(transcript.started.request_id(), "mine");
  EXPECT_EQ(transcript.started.model(), "tiny");
  EXPECT_EQ(transcript.started.seed(), 42u);
  EXPECT_EQ(transcript.started.thinking().mode(), v1::THINKING_MODE_THINKING);
  EXPECT_EQ(transcript.thinking, "hmm");
  EXPECT_EQ(transcript.content, "hello");
  EXPECT_EQ(transcript.thinking_done[0].ended_by(), v1::THINKING_END_NATURAL);
  EXPECT_EQ(transcript.ids, Encode("<think>\nhmm\n</think>\n\nhello<|im_end|>"));
  const v1::Finished& finished = transcript.finished;
  EXPECT_EQ(finished.reason(), v1::CHAT_FINISH_REASON_STOP);
  EXPECT_EQ(finished.failovers(), 0u);
  EXPECT_EQ(finished.usage().prompt_tokens(), transcript.started.prompt_tokens());
  EXPECT_EQ(finished.usage().cached_prompt_tokens(), 5u);
  EXPECT_EQ(finished.usage().completion_tokens(), transcript.ids.size());
  EXPECT_EQ(finished.usage().thinking_tokens(), 5u);
  EXPECT_EQ(finished.usage().answer_tokens(), 8u);  // "\n\nhello" and the stop id
  EXPECT_EQ(finished.thinking().used(), 5u);
  EXPECT_EQ(finished.thinking().source(), v1::THINKING_SOURCE_DEFAULT);
  EXPECT_THAT(worker.requests()[0].request_id(), StartsWith("mine#"));
}

TEST(InferenceService, ABudgetEndsThinking) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer("thinking for long", "\n\nhello"));
  TestRouter router({&worker});
  v1::ChatRequest request = UserSays("hi");
  request.mutable_thinking()->set_budget(8);
  const Transcript transcript = RunChat(router, request);
  ASSERT_OK(transcript.status);
  EXPECT_THAT(transcript.thinking, StartsWith("thinking\n\nConsidering the limited time"));
  EXPECT_EQ(transcript.content, "hello");
  const v1::ThinkingReport& report = transcript.finished.thinking();
  EXPECT_EQ(report.used(), 8u);
  EXPECT_EQ(report.budget(), 8);
  EXPECT_EQ(report.ended_by(), v1::THINKING_END_BUDGET);
  const v1::Usage& usage = transcript.finished.usage();
  EXPECT_EQ(usage.thinking_tokens(), report.used() + report.forced());
  // Everything is thinking, answer, or one of the two marks.
  EXPECT_EQ(usage.completion_tokens(), usage.thinking_tokens() + usage.answer_tokens() + 2);
}

TEST(InferenceService, AnswersWithToolCalls) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer(
      "x", "\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>"));
  TestRouter router({&worker});
  v1::ChatRequest request = UserSays("hi");
  request.add_tools("{\"name\": \"f\"}");
  const Transcript transcript = RunChat(router, request);
  ASSERT_OK(transcript.status);
  ASSERT_EQ(transcript.tool_calls.size(), 1u);
  EXPECT_EQ(transcript.tool_calls[0].arguments(), "{\"x\": 1}");
  EXPECT_EQ(transcript.finished.reason(), v1::CHAT_FINISH_REASON_TOOL_CALLS);
}

TEST(InferenceService, AStopStringEndsTheWorkersRequest) {
  FakeWorker worker;
  worker.SetNext(Say("one two three four five"));
  worker.PauseAfter(12);  // "one two thre": past the stop string
  TestRouter router({&worker});
  v1::ChatRequest request = UserSays("hi /no_think");
  request.add_stop("two");
  const Transcript transcript = RunChat(router, request);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.content, "one ");
  EXPECT_EQ(transcript.finished.stop_string(), "two");
  EXPECT_EQ(transcript.finished.usage().completion_tokens(), 7u);
  EXPECT_TRUE(worker.WaitForCancelled());
  EXPECT_TRUE(worker.WaitForIdle());
}

TEST(InferenceService, LengthIsAFinishReason) {
  FakeWorker worker;
  worker.SetNext(Ramble());
  TestRouter router({&worker});
  v1::ChatRequest request = UserSays("hi");
  request.set_max_tokens(9);
  const Transcript transcript = RunChat(router, request);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.finished.reason(), v1::CHAT_FINISH_REASON_LENGTH);
  EXPECT_EQ(transcript.ids.size(), 9u);
}

TEST(InferenceService, GeneratesAndScores) {
  FakeWorker worker;
  worker.SetNext(Say("<think>a</think>b!c"));
  TestRouter router({&worker});
  v1::GenerateRequest request = Complete("abc");
  request.set_prompt_logprobs(true);
  request.mutable_sampling()->set_logprobs(true);
  request.add_stop("!");
  Transcript transcript = RunGenerate(router, request);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.content, "<think>a</think>b");
  EXPECT_THAT(transcript.prompt_logprobs, ElementsAre(-1, -2));
  EXPECT_EQ(transcript.ids, Encode("<think>a</think>b!"));
  EXPECT_EQ(transcript.logprobs.size(), transcript.ids.size());
  EXPECT_EQ(transcript.finished.stop_string(), "!");
  EXPECT_EQ(transcript.finished.usage().thinking_tokens(), 1u);
  EXPECT_EQ(transcript.finished.usage().answer_tokens(), 2u);

  request.set_max_tokens(0);  // score only
  transcript = RunGenerate(router, request);
  ASSERT_OK(transcript.status);
  EXPECT_THAT(transcript.kinds, ElementsAre("started", "prompt_logprobs", "finished"));
  EXPECT_EQ(transcript.finished.usage().completion_tokens(), 0u);

  v1::GenerateRequest ids;
  for (uint32_t id : Encode("abc")) ids.mutable_token_ids()->add_ids(id);
  transcript = RunGenerate(router, ids);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.content, "<think>a</think>b!c");
  EXPECT_EQ(worker.requests()[2].prompt_ids_size(), 3);
}

TEST(InferenceService, TokenizesAndDetokenizes) {
  FakeWorker worker;
  TestRouter router({&worker});
  v1::TokenizeRequest tokenize;
  tokenize.set_text("a<|im_end|>");
  v1::TokenizeResponse ids;
  grpc::ClientContext first, second, third, fourth, fifth, sixth;
  ASSERT_TRUE(router.stub().Tokenize(&first, tokenize, &ids).ok());
  EXPECT_THAT(ids.ids(), ElementsAre(Encode("a")[0], AddedId("<|im_end|>")));
  tokenize.set_plain(true);
  ASSERT_TRUE(router.stub().Tokenize(&second, tokenize, &ids).ok());
  EXPECT_EQ(ids.ids_size(), 11);
  tokenize.set_text(std::string(limits::kMaxInlinePromptBytes + 1, 'a'));
  ASSERT_TRUE(router.stub().Tokenize(&third, tokenize, &ids).ok());
  EXPECT_EQ(ids.ids_size(), static_cast<int>(limits::kMaxInlinePromptBytes + 1));
  tokenize.set_text(std::string(limits::kMaxPromptBytes + 1, 'a'));
  EXPECT_EQ(router.stub().Tokenize(&fourth, tokenize, &ids).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);

  v1::DetokenizeRequest detokenize;
  for (uint32_t id : Encode("a<|im_end|>")) detokenize.add_ids(id);
  detokenize.set_skip_special_tokens(true);
  v1::DetokenizeResponse text;
  ASSERT_TRUE(router.stub().Detokenize(&fifth, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "a");
  detokenize.add_ids(282);
  EXPECT_EQ(router.stub().Detokenize(&sixth, detokenize, &text).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(InferenceService, DescribesModelAndCluster) {
  FakeWorker worker;
  worker.SetDescription([](v1::WorkerDescription& d) { d.set_max_context(1234); });
  TestRouter router({&worker});
  grpc::ClientContext context;
  v1::GetModelResponse model;
  ASSERT_TRUE(router.stub().GetModel(&context, {}, &model).ok());
  EXPECT_EQ(model.model().name(), "tiny");
  EXPECT_EQ(model.model().fingerprint(), "f00d");
  EXPECT_EQ(model.max_context(), 1234u);
  EXPECT_EQ(model.chat_template(), "qwen3");
  EXPECT_EQ(model.default_mode(), v1::THINKING_MODE_THINKING);
  const v1::ClusterStatus cluster = router.Cluster();
  EXPECT_TRUE(cluster.serving());
  ASSERT_EQ(cluster.workers_size(), 1);
  EXPECT_EQ(cluster.workers(0).target(), worker.target());
  EXPECT_TRUE(cluster.workers(0).up());
}

TEST(InferenceService, LargePromptsAreTokenizedElsewhere) {
  FakeWorker worker;
  TestRouter router({&worker});
  const std::string text(limits::kMaxInlinePromptBytes + 1, 'a');
  // More bytes than context, for this vocabulary has a token a byte.
  EXPECT_THAT(RunChat(router, UserSays(text)).status,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("maximum context length")));
}

TEST(InferenceService, RefusesInItsOwnWords) {
  FakeWorker worker;
  TestRouter router({&worker});
  v1::ChatRequest request = UserSays("hi");
  request.set_model("gpt-4");
  EXPECT_THAT(RunChat(router, request).status, StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(RunChat(router, v1::ChatRequest()).status,
              StatusIs(absl::StatusCode::kInvalidArgument));
  request = UserSays("hi");
  request.mutable_sampling()->set_temperature(std::nanf(""));
  EXPECT_THAT(RunChat(router, request).status,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("temperature")));
  request = UserSays("hi");
  request.set_request_id("a b");
  EXPECT_THAT(RunChat(router, request).status, StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(RunGenerate(router, v1::GenerateRequest()).status,
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(router.Metric("conclave_router_requests_total{method=\"Chat\",outcome="
                          "\"invalid_argument\"}"),
            3);
  EXPECT_TRUE(worker.requests().empty());
}

TEST(InferenceService, HostileBytesEndOnlyTheirOwnRequest) {
  FakeWorker worker;
  TestRouter router({&worker});
  // A string field that is not UTF-8 is refused by protobuf, before the service sees it.
  EXPECT_FALSE(RunChat(router, UserSays("\xff\xfe")).status.ok());
  EXPECT_FALSE(RunGenerate(router, Complete("\xc3")).status.ok());
  // A message past gRPC's limit too.
  EXPECT_THAT(RunChat(router, UserSays(std::string(limits::kMaxGrpcMessageBytes, 'a'))).status,
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_OK(RunChat(router, UserSays("hi")).status);
}

TEST(InferenceService, FullAdmissionSaysWhenToComeBack) {
  FakeWorker worker;
  worker.PauseAfter(2);
  TestRouterOptions options;
  options.engine.max_inflight = 2;
  TestRouter router({&worker}, options);
  auto first = StartChat(router, UserSays("one")), second = StartChat(router, UserSays("two"));
  ASSERT_TRUE(worker.WaitForPaused(2));
  const Transcript third = RunChat(router, UserSays("three"));
  EXPECT_THAT(third.status, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(third.retry_after, absl::Seconds(1));
  EXPECT_EQ(router.Metric("conclave_router_inflight"), 2);
  worker.Continue();
  EXPECT_OK(ReadAll(*first).status);
  EXPECT_OK(ReadAll(*second).status);
  EXPECT_EQ(router.Metric("conclave_router_inflight"), 0);
  EXPECT_OK(RunChat(router, UserSays("three")).status);
}

TEST(InferenceService, RequestIdsInFlightAreUnique) {
  FakeWorker worker;
  worker.PauseAfter(2);
  TestRouter router({&worker});
  v1::ChatRequest request = UserSays("hi");
  request.set_request_id("mine");
  auto first = StartChat(router, request);
  ASSERT_TRUE(worker.WaitForPaused());
  EXPECT_THAT(RunChat(router, request).status, StatusIs(absl::StatusCode::kAlreadyExists));
  worker.Continue();
  EXPECT_OK(ReadAll(*first).status);
  EXPECT_OK(RunChat(router, request).status);  // free again
}

TEST(InferenceService, AClientThatGoesAwayFreesTheWorker) {
  FakeWorker worker;
  worker.PauseAfter(2);
  TestRouter router({&worker});
  auto call = StartChat(router, UserSays("hi"));
  ASSERT_TRUE(worker.WaitForPaused());
  call->context.TryCancel();
  EXPECT_TRUE(worker.WaitForCancelled());
  EXPECT_THAT(ReadAll(*call).status, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(Eventually([&] { return router.engine().inflight() == 0; }));
  EXPECT_EQ(router.Metric("conclave_router_requests_total{method=\"Chat\",outcome=\"cancelled\"}"),
            1);
}

TEST(InferenceService, DeadlinesReachTheWorker) {
  FakeWorker worker;
  worker.PauseAfter(2);
  TestRouter router({&worker});
  router.Cluster();  // connects: the call below takes no longer than its way
  auto call = StartChat(router, UserSays("hi"), absl::Seconds(1));
  ASSERT_TRUE(worker.WaitForPaused());
  EXPECT_THAT(ReadAll(*call).status, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_TRUE(worker.WaitForIdle());
  EXPECT_TRUE(Eventually([&] { return router.engine().inflight() == 0; }));
  EXPECT_EQ(router.Metric(
                "conclave_router_requests_total{method=\"Chat\",outcome=\"deadline_exceeded\"}"),
            1);
}

TEST(InferenceService, NobodyReadyIsUnavailable) {
  TestRouterOptions options;
  options.pool.targets = {"127.0.0.1:1"};
  options.engine.tokens.first_worker_wait = absl::Milliseconds(200);
  TestRouter router({}, options);
  EXPECT_THAT(RunChat(router, UserSays("hi")).status,
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("0 of 1")));
  EXPECT_FALSE(router.Cluster().serving());
  EXPECT_EQ(router.Metric("conclave_router_waiting"), 0);
  auto call = StartChat(router, UserSays("hi"), absl::Milliseconds(50));
  EXPECT_THAT(ReadAll(*call).status, StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(InferenceService, ADrainRefusesNewRequestsAndFinishesTheOthers) {
  FakeWorker worker;
  worker.PauseAfter(2);
  TestRouter router({&worker});
  auto call = StartChat(router, UserSays("hi"));
  ASSERT_TRUE(worker.WaitForPaused());
  router.engine().BeginDrain();
  EXPECT_THAT(RunChat(router, UserSays("hi")).status,
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("draining")));
  EXPECT_TRUE(router.Cluster().router().draining());
  EXPECT_FALSE(router.engine().WaitIdle(absl::Now()));
  worker.Continue();
  EXPECT_OK(ReadAll(*call).status);
  EXPECT_TRUE(router.engine().WaitIdle(absl::Now() + absl::Seconds(20)));
  EXPECT_EQ(router.Metric("conclave_router_drains_total"), 1);
  router.server().DrainAndStop(absl::Seconds(20));
}

TEST(InferenceService, ASlowReaderHoldsBackTheWorkerAlone) {
  FakeWorker worker;
  worker.SetNext(Ramble());
  TestRouter router({&worker});
  v1::ChatRequest request = UserSays("hi");
  request.set_max_tokens(8000);
  auto slow = StartChat(router, request);
  v1::ChatEvent event;
  ASSERT_TRUE(slow->Read(&event));
  // Another request passes while the first is not read.
  v1::ChatRequest quick = UserSays("hi");
  quick.set_max_tokens(10);
  EXPECT_OK(RunChat(router, quick).status);
  const Transcript transcript = ReadAll(*slow);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.ids.size(), 8000u);
}

TEST(InferenceService, MetricsAreTheSumsOfTheUsages) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer("thinking for long", "\n\nhello"));
  worker.SetCachedPromptTokens(3);
  TestRouter router({&worker});
  std::vector<v1::Finished> thinking, raw;
  for (int64_t budget : {-1, 4, 8}) {
    v1::ChatRequest request = UserSays("hi");
    request.mutable_thinking()->set_budget(budget);
    thinking.push_back(RunChat(router, request).finished);
  }
  worker.SetNext(Say("hello"));
  raw.push_back(RunGenerate(router, Complete("abc")).finished);
  RunChat(router, v1::ChatRequest());  // fails: no usage, no tokens
  const auto expect_sums = [&](const std::string& mode, const std::vector<v1::Finished>& all) {
    uint32_t prompt = 0, cached = 0, think = 0, forced = 0, answer = 0;
    for (const v1::Finished& finished : all) {
      prompt += finished.usage().prompt_tokens();
      cached += finished.usage().cached_prompt_tokens();
      think += finished.usage().thinking_tokens();
      answer += finished.usage().answer_tokens();
      forced += finished.thinking().forced();
    }
    const auto counter = [&](const std::string& kind) {
      return router.Metric("conclave_router_" + kind + "_tokens_total{mode=\"" + mode + "\"}");
    };
    EXPECT_EQ(counter("prompt"), prompt) << mode;
    EXPECT_EQ(counter("cached_prompt"), cached) << mode;
    EXPECT_EQ(counter("thinking"), think) << mode;
    EXPECT_EQ(counter("forced"), forced) << mode;
    EXPECT_EQ(counter("answer"), answer) << mode;
    EXPECT_GT(prompt * cached * answer, 0u) << mode;
  };
  expect_sums("thinking", thinking);
  expect_sums("raw", raw);
  EXPECT_EQ(router.Metric("conclave_router_thinking_ended_total{ended_by=\"budget\"}"), 2);
  EXPECT_EQ(router.Metric("conclave_router_thinking_ended_total{ended_by=\"natural\"}"), 1);
  EXPECT_EQ(router.Metric("conclave_router_requests_total{method=\"Chat\",outcome=\"ok\"}"), 3);
  EXPECT_EQ(router.Metric("conclave_router_requests_total{method=\"Generate\",outcome=\"ok\"}"), 1);
  EXPECT_EQ(router.Metric("conclave_router_thinking_tokens_count"), 3);
  EXPECT_EQ(router.Metric("conclave_router_thinking_budget_used_ratio_sum"), 2);
  EXPECT_EQ(router.Metric("conclave_router_time_to_first_token_seconds_count"), 4);
  EXPECT_EQ(
      router.Metric("conclave_router_time_to_first_answer_token_seconds_count{mode=\"thinking\"}"),
      3);
  EXPECT_GT(router.Metric("conclave_router_inter_token_seconds_count"), 20);
  EXPECT_EQ(router.Metric("conclave_router_workers_up"), 1);
}

TEST(InferenceService, ManyRequestsAtOnce) {
  FakeWorker first, second;
  first.SetNext(Ramble());
  second.SetNext(Ramble());
  TestRouter router({&first, &second});
  std::vector<std::thread> clients;
  std::vector<Transcript> transcripts(16);
  for (size_t i = 0; i < transcripts.size(); ++i) {
    clients.emplace_back([&, i] {
      v1::ChatRequest request = UserSays("hi");
      request.set_max_tokens(40);
      request.mutable_sampling()->set_seed(i / 2);
      transcripts[i] = RunChat(router, request);
    });
  }
  for (std::thread& client : clients) client.join();
  for (size_t i = 0; i < transcripts.size(); i += 2) {
    ASSERT_OK(transcripts[i].status);
    EXPECT_EQ(transcripts[i].ids.size(), 40u);
    EXPECT_EQ(transcripts[i].ids, transcripts[i + 1].ids);
  }
  EXPECT_EQ(first.requests().size() + second.requests().size(), transcripts.size());
  EXPECT_GT(first.requests().size(), 0u);
  EXPECT_GT(second.requests().size(), 0u);
}

}  // namespace
}  // namespace conclave
