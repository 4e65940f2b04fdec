// What users of other servers complain about, one suite for each line of docs/complaints.md. Those
// that are a worker's or a shard's are in tests/worker/complaints_test.cc.

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "nlohmann/json.hpp"
#include "router/http_gateway.h"
#include "tests/router/test_http.h"
#include "tests/router/test_router.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;
using Json = nlohmann::json;

// A router with both doors.
class Router : public TestRouter {
 public:
  explicit Router(const std::vector<FakeWorker*>& workers, TestRouterOptions options = {})
      : TestRouter(workers, options), metrics_(&registry_) {
    HttpServerOptions server;
    server.handler = std::make_shared<HttpGateway>(options.model, &engine(), &metrics_, &registry_,
                                                   HttpGatewayOptions())
                         ->Handler();
    auto started = HttpServer::Start(std::move(server));
    CHECK(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  int port() const { return server_->port(); }

 private:
  Metrics registry_;
  RouterMetrics metrics_;
  std::unique_ptr<HttpServer> server_;
};

// A chat's answer over HTTP, the same whether it came as one body or in pieces.
struct Answer {
  int status = 0;
  std::string error;
  Json content, reasoning, reasoning_content;  // null if never said
  std::vector<std::string> calls;              // "name arguments"
  std::string finish_reason;
  Json usage, thinking;
};

void AppendText(const Json& from, const char* key, Json* to) {
  if (!from.contains(key) || !from[key].is_string()) return;
  *to = (to->is_null() ? "" : to->get<std::string>()) + from[key].get<std::string>();
}

// `message` is a whole one or the delta of a chunk.
void AddMessage(const Json& message, Answer* answer) {
  AppendText(message, "content", &answer->content);
  AppendText(message, "reasoning", &answer->reasoning);
  AppendText(message, "reasoning_content", &answer->reasoning_content);
  for (const Json& call : message.value("tool_calls", Json::array())) {
    const Json& function = call["function"];
    if (function.contains("name")) {
      answer->calls.push_back(function["name"].get<std::string>() + " ");
    }
    answer->calls.back() += function["arguments"].get<std::string>();
  }
}

void AddBody(const Json& body, bool stream, Answer* answer) {
  for (const Json& choice : body["choices"]) {
    AddMessage(choice[stream ? "delta" : "message"], answer);
    if (choice["finish_reason"].is_string()) answer->finish_reason = choice["finish_reason"];
    if (choice.contains("thinking")) answer->thinking = choice["thinking"];
  }
  if (body.contains("usage") && body["usage"].is_object()) answer->usage = body["usage"];
}

Answer Ask(const Router& router, Json body, bool stream, const std::string& headers = "") {
  if (!body.contains("messages")) body["messages"] = {{{"role", "user"}, {"content", "hi"}}};
  body["thinking_report"] = true;
  body["stream"] = stream;
  if (stream) body["stream_options"] = {{"include_usage", true}};
  const RawResponse response =
      Fetch(router.port(), "POST", "/v1/chat/completions", body.dump(), headers);
  Answer answer;
  answer.status = response.status;
  if (response.status != 200) {
    answer.error = Json::parse(response.body)["error"]["message"];
  } else if (!stream) {
    AddBody(Json::parse(response.body), stream, &answer);
  } else {
    for (absl::string_view frame : absl::StrSplit(response.body, "\n\n", absl::SkipEmpty())) {
      if (!absl::ConsumePrefix(&frame, "data: ") || frame == "[DONE]") continue;
      AddBody(Json::parse(frame), stream, &answer);
    }
  }
  return answer;
}

constexpr char kTool[] = R"({"type": "function", "function": {"name": "f"}})";

std::vector<uint32_t> PromptIds(const v1::TokenRequest& request) {
  return {request.prompt_ids().begin(), request.prompt_ids().end()};
}

TEST(Complaint01, EachRequestHasItsOwnBudget) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer("a long story of thoughts", "\n\nhello"));
  worker.PauseAfter(2);
  Router router({&worker});
  const std::vector<int64_t> budgets = {3, 9, -1};
  std::vector<std::unique_ptr<ChatCall>> calls;
  for (const int64_t budget : budgets) {
    v1::ChatRequest request = UserSays("hi");
    request.mutable_thinking()->set_budget(budget);
    calls.push_back(StartChat(router, request));
  }
  ASSERT_TRUE(worker.WaitForPaused(3));  // all three think at the same time
  worker.Continue();
  for (size_t i = 0; i < calls.size(); ++i) {
    const Transcript transcript = ReadAll(*calls[i]);
    ASSERT_OK(transcript.status);
    EXPECT_EQ(transcript.finished.thinking().budget(), budgets[i]);
    EXPECT_EQ(transcript.finished.thinking().used(), budgets[i] < 0 ? 24u : budgets[i]);
    EXPECT_EQ(transcript.content, "hello");
  }
}

TEST(Complaint02, MinusOneIsNoLimitAndEffortsAreBudgets) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer(std::string(5000, 't'), "\n\nhello"));
  Router router({&worker});
  const Answer unlimited = Ask(router, {{"thinking_budget", -1}}, false);
  EXPECT_EQ(unlimited.thinking["used"], 5000);
  EXPECT_EQ(unlimited.thinking["ended_by"], "natural");
  for (const auto& [effort, budget] :
       {std::pair("minimal", 256), {"low", 1024}, {"medium", 4096}, {"high", 16384}, {"max", -1}}) {
    const Answer answer = Ask(router, {{"reasoning_effort", effort}}, false);
    EXPECT_EQ(answer.thinking["budget"], budget) << effort;
    EXPECT_EQ(answer.thinking["used"], budget < 0 ? 5000 : std::min(budget, 5000)) << effort;
  }
  const Answer off = Ask(router, {{"reasoning_effort", "none"}}, false);
  EXPECT_EQ(off.thinking["mode"], "off");
}

TEST(Complaint03, NothingIsForcedOnceTheModelHasEndedByItself) {
  FakeWorker worker;
  const std::string answer(60, 'x');
  worker.SetNext(ThinkThenAnswer("hmm hmm", "\n\n" + answer));
  Router router({&worker});
  for (int64_t budget = 8; budget < 70; budget += 3) {  // each is reached inside the answer
    v1::ChatRequest request = UserSays("hi");
    request.mutable_thinking()->set_budget(budget);
    const Transcript transcript = RunChat(router, request);
    ASSERT_OK(transcript.status);
    EXPECT_EQ(transcript.content, answer) << budget;
    EXPECT_EQ(transcript.finished.thinking().forced(), 0u);
    EXPECT_EQ(transcript.finished.thinking().ended_by(), v1::THINKING_END_NATURAL);
  }
}

TEST(Complaint04, NoToolCallIsCut) {
  const std::string call = R"(<tool_call>{"name": "f", "arguments": {"x": "a b"}}</tool_call>)";
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer("so " + call + " then more thoughts", "\n\n" + call));
  Router router({&worker});
  int cut_before = 0, cut_behind = 0;
  for (int64_t budget = 0; budget < 20; ++budget) {
    v1::ChatRequest request = UserSays("hi");
    request.add_tools(kTool);
    request.mutable_thinking()->set_budget(budget);
    const Transcript transcript = RunChat(router, request);
    ASSERT_OK(transcript.status);
    if (absl::StrContains(transcript.thinking, "<tool_call>")) {
      EXPECT_THAT(transcript.thinking, HasSubstr(call)) << budget;
      ++cut_behind;
    } else {
      ++cut_before;
    }
    ASSERT_EQ(transcript.tool_calls.size(), 1u) << budget;
    EXPECT_EQ(transcript.tool_calls[0].arguments(), R"({"x": "a b"})");
  }
  EXPECT_GT(cut_before, 0);
  EXPECT_GT(cut_behind, 0);
}

TEST(Complaint06, ThinkingThatReopensAfterTheCutIsClosedAgain) {
  const std::vector<uint32_t> again = Encode("\n\n<think>once more, at length</think>");
  const std::vector<uint32_t> last = Encode("\n\nhello<|im_end|>");
  FakeWorker worker;
  worker.SetNext([&](const v1::TokenRequest& request, const std::vector<uint32_t>& generated) {
    const uint32_t end_id = request.thinking().end_id();
    const auto ends = std::count(generated.begin(), generated.end(), end_id);
    if (ends == 0) return generated.empty() ? request.thinking().start_id() : Encode("t")[0];
    const auto behind = static_cast<size_t>(
        std::find(generated.rbegin(), generated.rend(), end_id) - generated.rbegin());
    const std::vector<uint32_t>& script = ends == 1 ? again : last;
    return script[std::min(behind, script.size() - 1)];
  });
  Router router({&worker});
  v1::ChatRequest request = UserSays("hi");
  request.mutable_thinking()->set_budget(5);
  const Transcript transcript = RunChat(router, request);
  ASSERT_OK(transcript.status);
  EXPECT_EQ(transcript.content, "hello");
  EXPECT_EQ(transcript.finished.thinking().used(), 5u);
  EXPECT_THAT(transcript.thinking, Not(HasSubstr("once more")));
  EXPECT_EQ(transcript.thinking_done.size(), 2u);
}

TEST(Complaint07, ABudgetIsKeptOrRefusedAndThereIsAlwaysAnAnswer) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer(std::string(5000, 't'), "\n\nhello"));
  Router router({&worker});
  for (const Json& body : std::vector<Json>{{{"thinking_budget", 8}},
                                            {{"thinking_token_budget", 8}},
                                            {{"thinking_budget_tokens", 8}},
                                            {{"nvext", {{"max_thinking_tokens", 8}}}},
                                            {{"custom_params", {{"thinking_budget", 8}}}},
                                            {{"chat_template_kwargs", {{"thinking_budget", 8}}}}}) {
    const Answer answer = Ask(router, body, false);
    EXPECT_EQ(answer.thinking["used"], 8) << body;
    EXPECT_EQ(answer.content, "hello") << body;
  }
  EXPECT_EQ(Ask(router, {{"thinking_budget", "8"}}, false).status, 400);
  const Answer conflict =
      Ask(router, {{"thinking_budget", 8}, {"thinking_token_budget", 9}}, false);
  EXPECT_EQ(conflict.status, 400);
  EXPECT_THAT(conflict.error, HasSubstr("thinking_budget"));
  EXPECT_THAT(conflict.error, HasSubstr("thinking_token_budget"));
  // No budget, and max_tokens that thinking alone would use up.
  for (const int max_tokens : {100, 400, 2000}) {
    const Answer answer = Ask(router, {{"max_tokens", max_tokens}}, false);
    EXPECT_EQ(answer.content, "hello") << max_tokens;
    EXPECT_EQ(answer.thinking["ended_by"], "answer_reserve");
  }
}

TEST(Complaint09, AClientsBudgetHoldsBelowTheServersCeiling) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer(std::string(100, 't'), "\n\nhello"));
  TestRouterOptions options;
  options.engine.budgets.ceilings.other_keys = 20;
  options.engine.budgets.ceilings.keys = {{"small", 5}, {"free", -1}};
  Router router({&worker}, options);
  const auto used = [&](int64_t budget, const std::string& key) {
    const Answer answer = Ask(router, {{"thinking_budget", budget}}, false,
                              key.empty() ? "" : "Authorization: Bearer " + key + "\r\n");
    EXPECT_EQ(answer.content, "hello");
    return answer.thinking["used"].get<int>();
  };
  EXPECT_EQ(used(7, ""), 7);
  EXPECT_EQ(used(50, ""), 20);
  EXPECT_EQ(used(-1, ""), 20);
  EXPECT_EQ(used(7, "small"), 5);
  EXPECT_EQ(used(3, "small"), 3);
  EXPECT_EQ(used(-1, "free"), 100);
  // And the client is told.
  v1::ChatRequest request = UserSays("hi");
  request.mutable_thinking()->set_budget(50);
  const v1::ThinkingReport report = RunChat(router, request).finished.thinking();
  EXPECT_EQ(report.requested_budget(), 50);
  EXPECT_EQ(report.budget(), 20);
  EXPECT_EQ(report.limited_by(), v1::BUDGET_LIMIT_CEILING);
}

TEST(Complaint10, UsageCountsReasoningStreamedOrNot) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer("a long story of thoughts", "\n\nhello"));
  Router router({&worker});
  for (const int budget : {-1, 7}) {
    const Answer whole = Ask(router, {{"thinking_budget", budget}}, false);
    const Answer streamed = Ask(router, {{"thinking_budget", budget}}, true);
    const int reasoning = whole.thinking["used"].get<int>() + whole.thinking["forced"].get<int>();
    EXPECT_GT(reasoning, 0);
    EXPECT_EQ(whole.usage["completion_tokens_details"]["reasoning_tokens"], reasoning);
    EXPECT_GT(whole.usage["completion_tokens"], reasoning);
    EXPECT_EQ(streamed.usage, whole.usage);
  }
}

TEST(Complaint11, UsageOverGrpcIsTheSame) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer("a long story of thoughts", "\n\nhello"));
  Router router({&worker});
  const Json http = Ask(router, {{"thinking_budget", 7}}, false).usage;
  v1::ChatRequest request = UserSays("hi");
  request.mutable_thinking()->set_budget(7);
  const v1::Usage grpc = RunChat(router, request).finished.usage();
  EXPECT_EQ(grpc.prompt_tokens(), http["prompt_tokens"]);
  EXPECT_EQ(grpc.completion_tokens(), http["completion_tokens"]);
  EXPECT_EQ(grpc.thinking_tokens(), http["completion_tokens_details"]["reasoning_tokens"]);
  // Raw completions too.
  worker.SetNext(Say("<think>abc</think>d"));
  EXPECT_EQ(RunGenerate(router, Complete("x")).finished.usage().thinking_tokens(), 3u);
}

TEST(Complaint12, MaxCompletionTokensIsThinkingAndAnswerTogether) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer(std::string(5000, 't'), "\n\n" + std::string(5000, 'x')));
  Router router({&worker});
  const Answer answer = Ask(router, {{"max_completion_tokens", 300}}, false);
  EXPECT_EQ(answer.usage["completion_tokens"], 300);
  EXPECT_EQ(answer.finish_reason, "length");
  EXPECT_THAT(answer.content.get<std::string>(), StartsWith("xx"));
  EXPECT_EQ(Ask(router, {{"max_tokens", 300}}, false).usage, answer.usage);
  const Answer both = Ask(router, {{"max_completion_tokens", 300}, {"max_tokens", 200}}, false);
  EXPECT_EQ(both.status, 400);
  EXPECT_THAT(both.error, HasSubstr("max_completion_tokens"));
}

TEST(Complaint13, ReasoningHasBothNamesInAndOut) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer("hmm", "\n\nhello"));
  Router router({&worker});
  for (const bool stream : {false, true}) {
    const Answer answer = Ask(router, Json::object(), stream);
    EXPECT_EQ(answer.reasoning, "hmm");
    EXPECT_EQ(answer.reasoning_content, "hmm");
  }
  std::vector<std::vector<uint32_t>> prompts;
  for (const char* name : {"reasoning", "reasoning_content"}) {
    const Json call = {{"id", "1"}, {"function", {{"name", "f"}, {"arguments", "{}"}}}};
    const Json turn = {{"role", "assistant"}, {name, "my plan"}, {"tool_calls", {call}}};
    Ask(router,
        {{"messages",
          {{{"role", "user"}, {"content", "hi"}},
           turn,
           {{"role", "tool"}, {"tool_call_id", "1"}, {"content", "5"}}}}},
        false);
    prompts.push_back(PromptIds(worker.requests().back()));
  }
  EXPECT_EQ(prompts[0], prompts[1]);
  EXPECT_THAT(TestModel().tokenizer->Decode(prompts[0], false), HasSubstr("my plan"));
}

TEST(Complaint14, WithThinkingOffTheAnswerIsContent) {
  FakeWorker worker;
  worker.SetNext(Say("hello"));
  Router router({&worker});
  for (const bool stream : {false, true}) {
    for (const Json& body :
         std::vector<Json>{{{"enable_thinking", false}},
                           {{"chat_template_kwargs", {{"enable_thinking", false}}}}}) {
      const Answer answer = Ask(router, body, stream);
      EXPECT_EQ(answer.content, "hello");
      EXPECT_TRUE(answer.reasoning_content.is_null());
      EXPECT_EQ(answer.usage["completion_tokens_details"]["reasoning_tokens"], 0);
    }
  }
  // What the template would take for true is refused, not misread.
  EXPECT_EQ(Ask(router, {{"enable_thinking", "false"}}, false).status, 400);
}

TEST(Complaint15, APromptThatOpensThinkingIsParsedFromInside) {
  const auto model = LoadTestModel("thinking-2507");
  FakeWorker workers[2];
  for (FakeWorker& worker : workers) worker.SetNext(ThinkThenAnswer("hmm", "\n\nhello"));
  TestRouterOptions options;
  options.model = model.get();
  Router router({&workers[0], &workers[1]}, options);
  for (const bool stream : {false, true}) {
    const Answer answer = Ask(router, Json::object(), stream);
    EXPECT_EQ(answer.reasoning_content, "hmm");
    EXPECT_EQ(answer.content, "hello");
  }
  // No state is shared: one request is in its answer while the other still thinks.
  workers[0].PauseAfter(2);
  workers[1].PauseAfter(6);
  auto first = StartChat(router, UserSays("one")), second = StartChat(router, UserSays("two"));
  for (FakeWorker& worker : workers) ASSERT_TRUE(worker.WaitForPaused());
  for (FakeWorker& worker : workers) worker.Continue();
  for (ChatCall* call : {first.get(), second.get()}) {
    const Transcript transcript = ReadAll(*call);
    EXPECT_EQ(transcript.thinking, "hmm");
    EXPECT_EQ(transcript.content, "hello");
  }
}

TEST(Complaint16, LaterTurnsBeginWithTheIdsOfEarlierOnes) {
  FakeWorker worker;
  worker.SetNext(ThinkThenAnswer(
      "\nplan\n", "\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>"));
  Router router({&worker});
  v1::ChatRequest request = UserSays("hi");
  request.add_tools(kTool);
  const Transcript called = RunChat(router, request);
  ASSERT_EQ(called.tool_calls.size(), 1u);
  v1::ChatMessage* turn = request.add_messages();
  turn->set_role("assistant");
  turn->set_reasoning_content(called.thinking);
  v1::ToolCall* call = turn->add_tool_calls();
  call->set_name(called.tool_calls[0].name());
  call->set_arguments(called.tool_calls[0].arguments());
  v1::ChatMessage* result = request.add_messages();
  result->set_role("tool");
  result->set_content("5");
  worker.SetNext(ThinkThenAnswer("\nok\n", "\n\nhello"));
  const Transcript answered = RunChat(router, request);
  turn = request.add_messages();
  turn->set_role("assistant");
  turn->set_content(answered.content);
  turn->set_reasoning_content(answered.thinking);
  *request.add_messages() = UserSays("next").messages(0);
  RunChat(router, request);

  const auto requests = worker.requests();
  ASSERT_EQ(requests.size(), 3u);
  const auto begins_with = [](const std::vector<uint32_t>& ids, const std::vector<uint32_t>& with) {
    return ids.size() >= with.size() && std::equal(with.begin(), with.end(), ids.begin());
  };
  // Within a tool loop nothing is stripped: all that was computed is there again.
  std::vector<uint32_t> first = PromptIds(requests[0]);
  first.insert(first.end(), called.ids.begin(), called.ids.end());
  EXPECT_TRUE(begins_with(PromptIds(requests[1]), first));
  // The next question strips thinking, as Qwen3's template wants it: up to the first answer of the
  // turn before, that turn's prompt is there again.
  EXPECT_TRUE(begins_with(PromptIds(requests[2]), PromptIds(requests[0])));
}

TEST(Complaint19, OnlyTheWorkersOwnFailuresCountAgainstIt) {
  FakeWorker worker;
  worker.SetNext(Ramble());
  TestRouterOptions options;
  options.pool.min_rest = options.pool.max_rest = absl::Hours(1);  // a trip would be for good
  Router router({&worker}, options);
  v1::ChatRequest request = UserSays("hi");
  request.set_max_tokens(40);
  request.mutable_sampling()->set_seed(11);
  request.mutable_thinking()->set_enable_thinking(false);
  const Transcript undisturbed = RunChat(router, request);
  for (const absl::Status& answer :
       {absl::InvalidArgumentError("too long"), absl::NotFoundError("no such model"),
        absl::ResourceExhaustedError("queue full")}) {
    worker.RefuseWith(answer);
    for (int i = 0; i < 3 * options.pool.failures_to_open; ++i) {
      EXPECT_EQ(RunChat(router, request).status.code(), answer.code());
    }
    worker.RefuseWith(absl::OkStatus());
    EXPECT_OK(RunChat(router, request).status) << "after " << answer;
  }
  // A request whose worker breaks goes on with no id lost or doubled.
  worker.BreakAfter(17, absl::UnavailableError("lost"));
  const Transcript moved = RunChat(router, request);
  ASSERT_OK(moved.status);
  EXPECT_EQ(moved.ids, undisturbed.ids);
  EXPECT_EQ(moved.content, undisturbed.content);
  EXPECT_EQ(moved.finished.failovers(), 1u);
}

TEST(Complaint20, ToolCallsAreTheSameStreamedOrNot) {
  FakeWorker worker;
  Router router({&worker});
  const std::string call =
      "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": \"</tool_call> \\\"";
  for (const std::string& said :
       {"\n\nLet me see.\n" + call + "é\\\"\"}}\n</tool_call>\n" + call + "\"}}\n</tool_call>",
        std::string("\n\n<tool_call>\n{\"arguments\": {}, \"name\": \"f\"}"),  // cut off, but whole
        std::string("\n\n<tool_call>{\"name\": broken}</tool_call> and text"),
        std::string("\n\nno call <tool_")}) {
    worker.SetNext(ThinkThenAnswer("<tool_call>{\"name\": \"not a call\"}</tool_call>", said));
    const Json body = {{"tools", {Json::parse(kTool)}}};
    const Answer whole = Ask(router, body, false);
    const Answer streamed = Ask(router, body, true);
    EXPECT_EQ(streamed.calls, whole.calls) << said;
    EXPECT_EQ(streamed.finish_reason, whole.finish_reason) << said;
    EXPECT_EQ(whole.finish_reason, whole.calls.empty() ? "stop" : "tool_calls") << said;
    const auto text = [](const Json& content) {
      return content.is_null() ? std::string() : content.get<std::string>();
    };
    EXPECT_EQ(text(streamed.content), text(whole.content)) << said;
    for (const std::string& made : whole.calls) EXPECT_THAT(made, Not(HasSubstr("not a call")));
    // Without tools the markup is the client's own business.
    EXPECT_THAT(Ask(router, Json::object(), true).calls, IsEmpty());
    EXPECT_EQ(Ask(router, Json::object(), true).content, said.substr(2));
  }
}

}  // namespace
}  // namespace conclave
