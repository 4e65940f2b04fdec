#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "router/openai_stream.h"

namespace conclave {
namespace {

using Json = nlohmann::json;
using Events = std::vector<v1::GenerateEvent>;

absl::string_view Bytes(uint32_t id) {
  constexpr absl::string_view kTokens[] = {"Hello", " you", "\xC3", "\xA9"};
  return id < 4 ? kTokens[id] : absl::string_view();
}

OpenAiResponseInfo Info() { return {"cmpl-1", 1700000000, "qwen", "abc"}; }

OpenAiCompletionRequest Request(int num_prompts) {
  OpenAiCompletionRequest request;
  for (int i = 0; i < num_prompts; ++i) {
    request.prompts.emplace_back().set_text(absl::StrCat("prompt ", i, ": "));
  }
  return request;
}

v1::GenerateEvent Started() {
  v1::GenerateEvent event;
  event.mutable_started();
  return event;
}

v1::GenerateEvent Delta(absl::string_view text, const std::vector<uint32_t>& ids = {}) {
  v1::GenerateEvent event;
  event.mutable_delta()->set_text(std::string(text));
  for (uint32_t id : ids) {
    event.mutable_delta()->add_ids(id);
    v1::TokenLogprobs* logprobs = event.mutable_delta()->add_logprobs();
    logprobs->set_logprob(-0.5);
    v1::TokenLogprobs::Entry* top = logprobs->add_top();
    top->set_id(1);
    top->set_logprob(-0.25);
  }
  return event;
}

v1::GenerateEvent End(v1::ChatFinishReason reason) {
  v1::GenerateEvent event;
  v1::Finished* finished = event.mutable_finished();
  finished->set_reason(reason);
  finished->mutable_usage()->set_prompt_tokens(5);
  finished->mutable_usage()->set_cached_prompt_tokens(1);
  finished->mutable_usage()->set_completion_tokens(3);
  finished->mutable_usage()->set_thinking_tokens(2);
  finished->mutable_thinking()->set_budget(-1);
  finished->mutable_thinking()->set_used(2);
  finished->mutable_thinking()->set_ended_by(v1::THINKING_END_NATURAL);
  return event;
}

std::string Encode(const OpenAiCompletionRequest& request, const Events& events) {
  const auto encoder = MakeOpenAiCompletionEncoder(request, Info(), Bytes);
  std::string out;
  for (int i = 0; i < request.num_choices(); ++i) {
    for (const v1::GenerateEvent& event : events) out += encoder->Add(i, event);
  }
  return out + encoder->Finish();
}

TEST(OpenAiCompletionEncoderTest, WritesAWholeResponse) {
  OpenAiCompletionRequest request = Request(1);
  request.echo = true;
  request.answer.thinking_report = true;
  const Json json = Json::parse(Encode(
      request, {Started(), Delta("Hello"), Delta(" you"), End(v1::CHAT_FINISH_REASON_LENGTH)}));
  EXPECT_EQ(json, Json::parse(R"({"id": "cmpl-1", "object": "text_completion",
      "created": 1700000000, "model": "qwen", "system_fingerprint": "abc",
      "choices": [{"index": 0, "text": "prompt 0: Hello you", "logprobs": null,
        "finish_reason": "length",
        "thinking": {"mode": "raw", "source": "none", "budget": -1, "used": 2, "forced": 0,
                     "requested_budget": 0, "limited_by": "none",
                     "ended_by": "natural"}}],
      "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 2}}})"));
}

TEST(OpenAiCompletionEncoderTest, CountsEachPromptOnce) {
  OpenAiCompletionRequest request = Request(2);
  request.answer.n = 2;
  const Json json =
      Json::parse(Encode(request, {Started(), Delta("x"), End(v1::CHAT_FINISH_REASON_CANCELLED)}));
  EXPECT_EQ(json["choices"].size(), 4u);
  EXPECT_EQ(json["choices"][3]["index"], 3);
  EXPECT_EQ(json["choices"][3]["finish_reason"], "stop");
  EXPECT_EQ(json["usage"]["prompt_tokens"], 10);
  EXPECT_EQ(json["usage"]["completion_tokens"], 12);
}

TEST(OpenAiCompletionEncoderTest, EchoesPromptsOfIds) {
  OpenAiCompletionRequest request = Request(0);
  for (uint32_t id : {0, 2, 3, 2}) {
    if (request.prompts.empty()) request.prompts.emplace_back();
    request.prompts[0].mutable_token_ids()->add_ids(id);
  }
  request.echo = true;
  const Json json = Json::parse(Encode(request, {Started(), End(v1::CHAT_FINISH_REASON_STOP)}));
  EXPECT_EQ(json["choices"][0]["text"], "Helloé�");
}

TEST(OpenAiCompletionEncoderTest, WritesLegacyLogprobs) {
  OpenAiCompletionRequest request = Request(1);
  request.answer.logprobs = true;
  const Events events = {Started(), Delta("Hello", {0, 2}), Delta("é", {3}), Delta(" you", {1}),
                         End(v1::CHAT_FINISH_REASON_STOP)};
  const Json logprobs = Json::parse(Encode(request, events))["choices"][0]["logprobs"];
  const Json expected = Json::parse(R"({
      "tokens": ["Hello", "bytes:\\xc3", "bytes:\\xa9", " you"],
      "token_logprobs": [-0.5, -0.5, -0.5, -0.5],
      "top_logprobs": [{" you": -0.25, "Hello": -0.5}, {" you": -0.25, "bytes:\\xc3": -0.5},
                       {" you": -0.25, "bytes:\\xa9": -0.5}, {" you": -0.5}],
      "text_offset": [0, 5, 5, 6]})");
  EXPECT_EQ(logprobs, expected);
}

TEST(OpenAiCompletionEncoderTest, Streams) {
  OpenAiCompletionRequest request = Request(1);
  request.echo = true;
  request.answer.stream = true;
  request.answer.include_usage = true;
  const std::string frames =
      Encode(request, {Started(), Delta("Hi"), Delta("", {0}), End(v1::CHAT_FINISH_REASON_STOP)});
  const auto frame = [](absl::string_view rest) {
    return absl::StrCat(
        R"(data: {"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"qwen",)",
        R"("system_fingerprint":"abc","choices":[)", rest, "}\n\n");
  };
  const auto text = [&](absl::string_view piece, absl::string_view reason) {
    return frame(absl::StrCat(R"({"index":0,"text":")", piece, R"(","logprobs":null,)",
                              R"("finish_reason":)", reason, R"(}],"usage":null)"));
  };
  EXPECT_EQ(frames,
            absl::StrCat(text("prompt 0: ", "null"), text("Hi", "null"), text("", "\"stop\""),
                         frame(R"(],"usage":{"prompt_tokens":5,"completion_tokens":3,)"
                               R"("total_tokens":8,"prompt_tokens_details":{"cached_tokens":1},)"
                               R"("completion_tokens_details":{"reasoning_tokens":2}})"),
                         "data: [DONE]\n\n"));
}

TEST(OpenAiCompletionEncoderTest, StreamsLogprobsWithOffsetsThatGoOn) {
  OpenAiCompletionRequest request = Request(1);
  request.answer.logprobs = true;
  request.answer.stream = true;
  const auto encoder = MakeOpenAiCompletionEncoder(request, Info(), Bytes);
  EXPECT_EQ(encoder->Add(0, Started()), "");
  encoder->Add(0, Delta("Hello", {0}));
  const std::string frame = encoder->Add(0, Delta("", {1}));
  const Json logprobs = Json::parse(frame.substr(6))["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], Json::array({" you"}));
  EXPECT_EQ(logprobs["text_offset"], Json::array({5}));
}

}  // namespace
}  // namespace conclave
