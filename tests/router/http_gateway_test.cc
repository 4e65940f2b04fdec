// The HTTP API over sockets: client, gateway, engine, fake worker.

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "common/errors.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/router/test_http.h"
#include "tests/router/test_http_router.h"
#include "tests/router/test_router.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::json;

Json ChatBody(const Json& more = Json::object()) {
  Json body = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  body.update(more);
  return body;
}

Json Parse(const RawResponse& response) {
  Json json = Json::parse(response.body, nullptr, false);
  EXPECT_FALSE(json.is_discarded()) << response.body;
  return json;
}
std::string ErrorMessage(const RawResponse& response) {
  return Parse(response)["error"]["message"];
}

// The data of every frame; comments are left out.
std::vector<std::string> Frames(absl::string_view stream) {
  std::vector<std::string> frames;
  for (absl::string_view frame : absl::StrSplit(stream, "\n\n", absl::SkipEmpty())) {
    if (absl::ConsumePrefix(&frame, "data: ")) frames.emplace_back(frame);
  }
  return frames;
}

// One choice of a stream, put together.
struct Streamed {
  std::string content;
  std::string reasoning;
  std::string finish_reason;
};
std::map<int, Streamed> Merge(const std::vector<std::string>& frames) {
  std::map<int, Streamed> choices;
  for (const std::string& frame : frames) {
    if (frame == "[DONE]") continue;
    const Json chunk = Json::parse(frame);
    for (const Json& choice : chunk.value("choices", Json::array())) {
      Streamed& merged = choices[choice["index"]];
      const Json& delta = choice["delta"];
      if (delta.contains("content") && delta["content"].is_string()) {
        merged.content += delta["content"];
      }
      if (delta.contains("reasoning_content")) merged.reasoning += delta["reasoning_content"];
      if (choice["finish_reason"].is_string()) merged.finish_reason = choice["finish_reason"];
    }
  }
  return choices;
}

class HttpGatewayTest : public testing::Test {
 protected:
  HttpGatewayTest() { worker_.SetNext(ThinkThenAnswer("\nhmm\n", "\n\nhello")); }
  FakeWorker worker_;
};

// ---- chat ----

TEST_F(HttpGatewayTest, AnswersAChat) {
  HttpRouter router({&worker_});
  const RawResponse response = router.Post("/v1/chat/completions", ChatBody());
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(response.headers.at("content-type"), "application/json");
  const Json answer = Parse(response);
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["model"], "tiny");
  EXPECT_EQ(answer["id"], response.headers.at("x-request-id"));
  EXPECT_THAT(answer["id"].get<std::string>(), StartsWith("chatcmpl-"));
  EXPECT_EQ(answer["choices"][0]["message"]["content"], "hello");
  EXPECT_EQ(answer["choices"][0]["message"]["reasoning_content"], "hmm");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_GT(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
}

TEST_F(HttpGatewayTest, StreamsAChat) {
  HttpRouter router({&worker_});
  const RawResponse response =
      router.Post("/v1/chat/completions",
                  ChatBody({{"stream", true}, {"stream_options", {{"include_usage", true}}}}));
  ASSERT_EQ(response.status, 200);
  EXPECT_TRUE(response.whole);
  EXPECT_EQ(response.headers.at("content-type"), "text/event-stream");
  EXPECT_EQ(response.headers.at("cache-control"), "no-cache");
  const std::vector<std::string> frames = Frames(response.body);
  EXPECT_EQ(frames.back(), "[DONE]");
  const Streamed answer = Merge(frames).at(0);
  EXPECT_EQ(answer.content, "hello");
  EXPECT_EQ(answer.reasoning, "hmm");
  EXPECT_EQ(answer.finish_reason, "stop");
  EXPECT_GT(Json::parse(frames[frames.size() - 2])["usage"]["completion_tokens"], 0);
  EXPECT_EQ(Json::parse(frames[0])["id"], response.headers.at("x-request-id"));
}

TEST_F(HttpGatewayTest, AStreamBeginsWhenTheRequestDoes) {
  worker_.PauseAfter(0);
  HttpRouter router({&worker_});
  RawClient client = router.Start(ChatBody({{"stream", true}}));
  EXPECT_EQ(client.ReadHead().status, 200);
  EXPECT_THAT(client.ReadChunk(), HasSubstr("\"role\":\"assistant\""));
  ASSERT_TRUE(worker_.WaitForPaused());
  worker_.Continue();
  EXPECT_THAT(client.ReadUntil("data: [DONE]"), HasSubstr("\"content\":\"h\""));
}

TEST_F(HttpGatewayTest, ErrorsBeforeTheStreamAreStatuses) {
  TestRouterOptions options;
  options.engine.max_inflight = 1;
  HttpRouter router({&worker_}, options);
  for (const bool stream : {false, true}) {
    const Json more = {{"stream", stream}};
    RawResponse response = router.Post("/v1/chat/completions", ChatBody({{"temperature", 3}}));
    EXPECT_EQ(response.status, 400);
    EXPECT_EQ(Parse(response)["error"]["param"], "temperature");
    Json body = ChatBody(more);
    body["model"] = "other";
    response = router.Post("/v1/chat/completions", body);
    EXPECT_EQ(response.status, 404);
    EXPECT_EQ(Parse(response)["error"]["code"], "model_not_found");
    response = Fetch(router.port(), "POST", "/v1/chat/completions", "{]");
    EXPECT_EQ(response.status, 400);
    EXPECT_EQ(response.headers.at("content-type"), "application/json");
  }
  worker_.PauseAfter(1);
  RawClient first = router.Start(ChatBody());
  ASSERT_TRUE(worker_.WaitForPaused());
  RawResponse response = router.Post("/v1/chat/completions", ChatBody({{"stream", true}}));
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(response.headers.at("retry-after"), "1");
  EXPECT_EQ(Parse(response)["error"]["type"], "rate_limit_error");
  router.engine().BeginDrain();
  response = router.Post("/v1/chat/completions", ChatBody());
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.headers.at("retry-after"), "1");
  worker_.Continue();
  EXPECT_EQ(first.ReadResponse().status, 200);
  EXPECT_THAT(
      router.Get("/metrics").body,
      HasSubstr("conclave_router_requests_total{method=\"Chat\",outcome=\"unavailable\"} 1"));
}

TEST_F(HttpGatewayTest, AStreamThatFailsSaysSoInside) {
  HttpRouter router({&worker_});
  worker_.BreakAfter(3, absl::InvalidArgumentError("the worker finds it wrong"));
  const RawResponse response = router.Post("/v1/chat/completions", ChatBody({{"stream", true}}));
  EXPECT_EQ(response.status, 200);
  const std::vector<std::string> frames = Frames(response.body);
  EXPECT_THAT(Json::parse(frames.back())["error"]["message"].get<std::string>(),
              HasSubstr("finds it wrong"));
  EXPECT_TRUE(response.whole) << "the error is the answer's end";
  EXPECT_TRUE(router.WaitForIdle());
}

TEST_F(HttpGatewayTest, ALargePromptIsReadElsewhere) {
  HttpRouter router({&worker_});
  Json body = ChatBody();
  body["messages"][0]["content"] = std::string(200 << 10, 'x');
  const RawResponse response = router.Post("/v1/chat/completions", body);
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(Parse(response)["error"]["code"], "context_length_exceeded");
}

// ---- several choices ----

TEST_F(HttpGatewayTest, ChoicesDifferBySeed) {
  worker_.SetNext(Ramble());
  HttpRouter router({&worker_});
  const Json body =
      ChatBody({{"n", 3}, {"seed", 7}, {"max_tokens", 8}, {"enable_thinking", false}});
  const Json whole = Parse(router.Post("/v1/chat/completions", body));
  ASSERT_EQ(whole["choices"].size(), 3u) << whole;
  Json streaming = body;
  streaming["stream"] = true;
  const RawResponse response = router.Post("/v1/chat/completions", streaming);
  const auto streamed = Merge(Frames(response.body));
  ASSERT_EQ(streamed.size(), 3u) << response.body;
  EXPECT_EQ(Frames(response.body).back(), "[DONE]");
  std::set<std::string> texts;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(whole["choices"][i]["index"], i);
    EXPECT_EQ(whole["choices"][i]["message"]["content"], streamed.at(i).content);
    EXPECT_EQ(streamed.at(i).finish_reason, "length");
    texts.insert(streamed.at(i).content);
  }
  EXPECT_EQ(texts.size(), 3u);
}

TEST_F(HttpGatewayTest, AChoiceThatFailsFailsTheAnswer) {
  for (const bool stream : {false, true}) {
    // A worker for each: a cancelled choice may reach its worker after the answer has failed, and
    // would take the next answer's break.
    FakeWorker worker;
    HttpRouter router({&worker});
    // One of the three breaks, the others are at their gate by then or will be.
    worker.PauseAfter(5);
    worker.BreakAfter(3, absl::InvalidArgumentError("broken"));
    RawClient client = router.Start(ChatBody({{"n", 3}, {"stream", stream}}));
    const RawResponse response = client.ReadResponse();
    if (stream) {
      EXPECT_EQ(response.status, 200);
      const Json error = Json::parse(Frames(response.body).back());
      ASSERT_TRUE(error.contains("error")) << response.body;
      EXPECT_THAT(error["error"]["message"].get<std::string>(), HasSubstr("broken"));
    } else {
      EXPECT_EQ(response.status, 400);
      EXPECT_THAT(ErrorMessage(response), HasSubstr("broken"));
    }
    EXPECT_TRUE(router.WaitForIdle()) << "the other choices are cancelled";
    EXPECT_TRUE(worker.WaitForIdle());
  }
}

TEST_F(HttpGatewayTest, NotEveryChoiceFits) {
  TestRouterOptions options;
  options.engine.max_inflight = 2;
  HttpRouter router({&worker_}, options);
  worker_.PauseAfter(1);
  const RawResponse response =
      router.Post("/v1/chat/completions", ChatBody({{"n", 3}, {"stream", true}}));
  EXPECT_EQ(response.status, 429) << "none is streamed unless all are";
  EXPECT_TRUE(router.WaitForIdle());
}

TEST_F(HttpGatewayTest, FullWorkersAreAStatusAlsoForAStream) {
  FakeWorker second;
  worker_.RefuseWith(errors::Overloaded("worker queue", 4352));
  second.RefuseWith(errors::Overloaded("worker queue", 4352));
  HttpRouter router({&worker_, &second});
  for (const bool stream : {false, true}) {
    for (const int n : {1, 2}) {
      const RawResponse response =
          router.Post("/v1/chat/completions", ChatBody({{"stream", stream}, {"n", n}}));
      EXPECT_EQ(response.status, 429) << stream << n;
      EXPECT_EQ(response.headers.at("retry-after"), "1");
      EXPECT_THAT(ErrorMessage(response), HasSubstr("worker queue"));
    }
  }
  const RawResponse response = router.Post("/v1/completions", {{"prompt", "a"}, {"stream", true}});
  EXPECT_EQ(response.status, 429);
  EXPECT_TRUE(router.WaitForIdle());
}

TEST_F(HttpGatewayTest, AClientThatGoesCancelsItsChoices) {
  HttpRouter router({&worker_});
  worker_.PauseAfter(4);
  int cancelled = 0;
  for (const bool stream : {false, true}) {
    {
      RawClient client = router.Start(ChatBody({{"n", 2}, {"stream", stream}}));
      ASSERT_TRUE(worker_.WaitForPaused(2));
    }
    cancelled += 2;
    EXPECT_TRUE(worker_.WaitForCancelled(cancelled));
    EXPECT_TRUE(router.WaitForIdle());
  }
  EXPECT_THAT(router.Get("/metrics").body,
              HasSubstr("conclave_router_requests_total{method=\"Chat\",outcome=\"cancelled\"} 4"));
}

// ---- completion ----

TEST_F(HttpGatewayTest, CompletesText) {
  worker_.SetNext(Say("abc"));
  HttpRouter router({&worker_});
  const RawResponse whole =
      router.Post("/v1/completions", {{"prompt", {"one", "two"}}, {"max_tokens", 10}});
  ASSERT_EQ(whole.status, 200) << whole.body;
  const Json answer = Parse(whole);
  EXPECT_THAT(answer["id"].get<std::string>(), StartsWith("cmpl-"));
  EXPECT_EQ(answer["choices"][0]["text"], "abc");
  EXPECT_EQ(answer["choices"][1]["text"], "abc");
  const RawResponse stream =
      router.Post("/v1/completions", {{"prompt", "one"}, {"max_tokens", 10}, {"stream", true}});
  EXPECT_EQ(stream.status, 200);
  std::string text;
  for (const std::string& frame : Frames(stream.body)) {
    if (frame == "[DONE]") continue;
    const Json chunk = Json::parse(frame);
    for (const Json& choice : chunk["choices"]) text += choice["text"];
  }
  EXPECT_EQ(text, "abc");
  EXPECT_EQ(router.Post("/v1/completions", {{"prompt", 3}}).status, 400);
}

// ---- ids and control ----

TEST_F(HttpGatewayTest, AClientMayNameItsRequest) {
  HttpRouter router({&worker_});
  RawResponse response =
      router.Post("/v1/chat/completions", ChatBody(), "X-Request-Id: mine:1\r\n");
  EXPECT_EQ(response.headers.at("x-request-id"), "mine:1");
  EXPECT_EQ(Parse(response)["id"], "mine:1");
  EXPECT_THAT(worker_.requests()[0].request_id(), StartsWith("mine:1#"));
  for (const std::string& useless : {std::string("no spaces"), std::string(200, 'x')}) {
    response = router.Post("/v1/chat/completions", ChatBody(),
                           absl::StrCat("X-Request-Id: ", useless, "\r\n"));
    EXPECT_THAT(response.headers.at("x-request-id"), StartsWith("chatcmpl-"));
  }
  worker_.PauseAfter(1);
  RawClient first = router.Start(ChatBody(), "X-Request-Id: twice\r\n");
  ASSERT_TRUE(worker_.WaitForPaused());
  response = router.Post("/v1/chat/completions", ChatBody(), "X-Request-Id: twice\r\n");
  EXPECT_EQ(response.status, 409);
  worker_.Continue();
  EXPECT_EQ(first.ReadResponse().status, 200);
}

TEST_F(HttpGatewayTest, ControlsARequest) {
  worker_.SetNext(ThinkThenAnswer("a long story of thoughts", "\n\nhello"));
  HttpRouter router({&worker_});
  const auto run = [&](const Json& action) {
    worker_.PauseAfter(7);
    RawClient client = router.Start(ChatBody({{"thinking_report", true}}), "X-Request-Id: a/b\r\n");
    CHECK(worker_.WaitForPaused());
    const RawResponse response = router.Post("/v1/requests/a%2Fb/control", action);
    EXPECT_EQ(response.status, 200) << response.body;
    EXPECT_EQ(Parse(response)["id"], "a/b");
    worker_.Continue();
    return Parse(client.ReadResponse())["choices"][0];
  };
  Json choice = run({{"action", "finish_thinking"}});
  EXPECT_EQ(choice["thinking"]["ended_by"], "client");
  EXPECT_EQ(choice["message"]["content"], "hello");
  for (const char* name : {"thinking_budget", "budget"}) {
    choice = run({{"action", "set_thinking_budget"}, {name, 6}});
    EXPECT_EQ(choice["thinking"]["ended_by"], "budget");
    EXPECT_EQ(choice["thinking"]["budget"], 6);
  }
  choice = run({{"action", "cancel"}});
  EXPECT_EQ(choice["finish_reason"], "stop");
}

TEST_F(HttpGatewayTest, ControlsOneChoiceOrAll) {
  HttpRouter router({&worker_});
  worker_.PauseAfter(4);
  RawClient client = router.Start(ChatBody({{"n", 3}, {"stream", true}}), "X-Request-Id: x\r\n");
  ASSERT_TRUE(worker_.WaitForPaused(3));
  EXPECT_EQ(router.Post("/v1/requests/x-1/control", {{"action", "cancel"}}).status, 200);
  EXPECT_TRUE(worker_.WaitForCancelled(1));
  EXPECT_EQ(router.Post("/v1/requests/x/control", {{"action", "cancel"}}).status, 200);
  const RawResponse response = client.ReadResponse();
  EXPECT_EQ(Frames(response.body).back(), "[DONE]");
  EXPECT_EQ(Merge(Frames(response.body)).size(), 3u);
  EXPECT_TRUE(router.WaitForIdle());
}

TEST_F(HttpGatewayTest, ControlErrors) {
  HttpRouter router({&worker_});
  const auto control = [&](const Json& body) {
    return router.Post("/v1/requests/nobody/control", body);
  };
  RawResponse response = control({{"action", "cancel"}});
  EXPECT_EQ(response.status, 404);
  EXPECT_THAT(ErrorMessage(response), HasSubstr("nobody"));
  for (const Json& body : {Json::object(), Json::array(), Json({{"action", "explode"}}),
                           Json({{"action", 3}}), Json({{"action", "set_thinking_budget"}}),
                           Json({{"action", "set_thinking_budget"}, {"thinking_budget", -2}})}) {
    EXPECT_EQ(control(body).status, 400) << body;
  }
  EXPECT_EQ(router.Post("/v1/requests//control", {{"action", "cancel"}}).status, 404);
}

// ---- tokens ----

TEST_F(HttpGatewayTest, TokenizesAndDetokenizes) {
  HttpRouter router({&worker_});
  for (const char* name : {"prompt", "text"}) {
    const Json answer = Parse(router.Post(
        "/tokenize", {{"model", "tiny"}, {name, "a<think>"}, {"add_special_tokens", false}}));
    EXPECT_EQ(answer["tokens"], Json(Encode("a<think>"))) << answer;
    EXPECT_EQ(answer["count"], 2);
    EXPECT_EQ(answer["max_model_len"], kTestContext);
    const Json back = Parse(router.Post("/detokenize", {{"tokens", answer["tokens"]}}));
    EXPECT_EQ(back["prompt"], "a<think>");
  }
  const Json large = Parse(router.Post("/tokenize", {{"prompt", std::string(100 << 10, 'x')}}));
  EXPECT_EQ(large["count"], 100 << 10);

  EXPECT_EQ(router.Post("/tokenize", Json::object()).status, 400);
  EXPECT_EQ(router.Post("/tokenize", Json::array()).status, 400);
  EXPECT_EQ(router.Post("/tokenize", {{"prompt", 1}}).status, 400);
  EXPECT_EQ(router.Post("/tokenize", {{"prompt", "x"}, {"model", "other"}}).status, 404);
  EXPECT_EQ(router.Post("/detokenize", Json::object()).status, 400);
  EXPECT_EQ(router.Post("/detokenize", {{"tokens", "x"}}).status, 400);
  EXPECT_EQ(router.Post("/detokenize", {{"tokens", {-1}}}).status, 400);
  EXPECT_EQ(router.Post("/detokenize", {{"tokens", {1 << 20}}}).status, 400);
  const std::string metrics = router.Get("/metrics").body;
  EXPECT_THAT(metrics, HasSubstr("{method=\"Tokenize\",outcome=\"ok\"} 3"));
  EXPECT_THAT(metrics, HasSubstr("{method=\"Tokenize\",outcome=\"invalid_argument\"} 3"));
  EXPECT_THAT(metrics, HasSubstr("{method=\"Detokenize\",outcome=\"invalid_argument\"} 4"));
}

// ---- what is served ----

TEST_F(HttpGatewayTest, SaysWhatItServes) {
  HttpRouter router({&worker_});
  const Json list = Parse(router.Get("/v1/models"));
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 1u);
  EXPECT_EQ(list["data"][0]["id"], "tiny");
  EXPECT_EQ(list["data"][0]["object"], "model");
  EXPECT_EQ(list["data"][0]["max_model_len"], kTestContext);
  EXPECT_EQ(Parse(router.Get("/v1/models/tiny")), list["data"][0]);
  const RawResponse other = router.Get("/v1/models/other");
  EXPECT_EQ(other.status, 404);
  EXPECT_EQ(Parse(other)["error"]["code"], "model_not_found");
  const RawResponse metrics = router.Get("/metrics");
  EXPECT_EQ(metrics.headers.at("content-type"), "text/plain; version=0.0.4");
  EXPECT_THAT(metrics.body, HasSubstr("# TYPE conclave_router_inflight gauge"));
}

TEST_F(HttpGatewayTest, HealthFollowsTheCluster) {
  {
    TestRouterOptions options;
    options.pool.targets = {"127.0.0.1:1"};
    HttpRouter router({}, options);
    const RawResponse none = router.Get("/health");
    EXPECT_EQ(none.status, 503);
    EXPECT_THAT(ErrorMessage(none), HasSubstr("no worker serves"));
  }
  HttpRouter router({&worker_});
  EXPECT_EQ(router.Get("/health").status, 200);
  RawClient client(router.port());
  client.Write("HEAD /health HTTP/1.1\r\n\r\n");
  EXPECT_EQ(client.ReadResponse(/*has_body=*/false).status, 200);
  router.engine().BeginDrain();
  const RawResponse draining = router.Get("/health");
  EXPECT_EQ(draining.status, 503);
  EXPECT_THAT(ErrorMessage(draining), HasSubstr("draining"));
}

TEST_F(HttpGatewayTest, UnknownPathsAndMethods) {
  HttpRouter router({&worker_});
  for (const char* path : {"/", "/v1", "/v1/chat", "/v1/models/", "/v1/requests/control", "*"}) {
    const RawResponse response = router.Get(path);
    EXPECT_EQ(response.status, 404) << path;
    EXPECT_EQ(Parse(response)["error"]["type"], "invalid_request_error");
  }
  RawResponse response = router.Get("/v1/chat/completions");
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.headers.at("allow"), "POST");
  EXPECT_THAT(ErrorMessage(response), HasSubstr("method is GET, want POST"));
  response = Fetch(router.port(), "DELETE", "/v1/models");
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.headers.at("allow"), "GET, HEAD");
  response = Fetch(router.port(), "OPTIONS", "/v1/chat/completions");
  EXPECT_EQ(response.status, 405) << "no other page's scripts unless they are allowed";
  EXPECT_EQ(response.headers.count("access-control-allow-origin"), 0u);
}

TEST_F(HttpGatewayTest, PagesOfAnotherOriginIfAllowed) {
  HttpGatewayOptions options;
  options.cors_origin = "https://chat.example";
  HttpRouter router({&worker_}, {}, options);
  const RawResponse preflight =
      Fetch(router.port(), "OPTIONS", "/v1/chat/completions", "",
            "Access-Control-Request-Headers: authorization,x-stainless-os\r\n");
  EXPECT_EQ(preflight.status, 204);
  EXPECT_EQ(preflight.headers.at("access-control-allow-origin"), "https://chat.example");
  EXPECT_EQ(preflight.headers.at("access-control-allow-headers"), "authorization,x-stainless-os");
  EXPECT_THAT(preflight.headers.at("access-control-allow-methods"), HasSubstr("POST"));
  for (const bool stream : {false, true}) {
    const RawResponse answer = router.Post("/v1/chat/completions", ChatBody({{"stream", stream}}));
    EXPECT_EQ(answer.headers.at("access-control-allow-origin"), "https://chat.example");
  }
  EXPECT_EQ(router.Post("/v1/chat/completions", ChatBody({{"temperature", 3}}))
                .headers.at("access-control-allow-origin"),
            "https://chat.example");
}

}  // namespace
}  // namespace conclave
