#include "router/openai_completion.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::StartsWith;

OpenAiCompletionRequest Parse(absl::string_view body) {
  absl::StatusOr<OpenAiCompletionRequest> request = ParseOpenAiCompletion(body);
  EXPECT_THAT(request, IsOk()) << body;
  return request.ok() ? *std::move(request)
                      : OpenAiCompletionRequest{std::vector<v1::GenerateRequest>(1), {}, false};
}

std::string Body(absl::string_view members) {
  return absl::StrCat(R"({"prompt": "Once")", members.empty() ? "" : ", ", members, "}");
}

TEST(OpenAiCompletionTest, HasOpenAisDefaults) {
  const OpenAiCompletionRequest request = Parse(Body(""));
  ASSERT_EQ(request.num_choices(), 1);
  v1::GenerateRequest expected;
  expected.set_text("Once");
  expected.set_max_tokens(16);
  expected.mutable_sampling();
  EXPECT_EQ(request.prompts[0].ShortDebugString(), expected.ShortDebugString());
  EXPECT_FALSE(request.echo);
  EXPECT_FALSE(request.answer.logprobs);
}

TEST(OpenAiCompletionTest, ReadsEveryField) {
  const OpenAiCompletionRequest request = Parse(Body(R"(
      "model": "qwen", "max_tokens": 0, "temperature": 0, "top_k": -1, "seed": 5, "logprobs": 0,
      "stop": "x", "stop_token_ids": [3], "ignore_eos": true, "n": 2, "best_of": 2, "suffix": "",
      "stream": true, "stream_options": {"include_usage": true}, "thinking_budget": 9,
      "thinking_report": true, "user": "me")"));
  const v1::GenerateRequest& prompt = request.prompts[0];
  EXPECT_EQ(prompt.model(), "qwen");
  EXPECT_TRUE(prompt.has_max_tokens());
  EXPECT_EQ(prompt.max_tokens(), 0u);
  EXPECT_TRUE(prompt.sampling().has_temperature());
  EXPECT_EQ(prompt.sampling().top_k(), 0u);
  EXPECT_TRUE(prompt.sampling().logprobs());
  EXPECT_EQ(prompt.sampling().top_logprobs(), 0u);
  EXPECT_THAT(prompt.stop(), ElementsAre("x"));
  EXPECT_THAT(prompt.stop_ids(), ElementsAre(3u));
  EXPECT_TRUE(prompt.ignore_eos());
  EXPECT_EQ(prompt.thinking_budget(), 9);
  EXPECT_TRUE(request.answer.logprobs);
  EXPECT_TRUE(request.answer.stream);
  EXPECT_TRUE(request.answer.include_usage);
  EXPECT_TRUE(request.answer.thinking_report);
  EXPECT_EQ(request.Choice(0).sampling().seed(), 5u);
  EXPECT_EQ(request.Choice(1).sampling().seed(), 6u);
  EXPECT_EQ(Parse(Body(R"("logprobs": 20)")).prompts[0].sampling().top_logprobs(), 20u);
  EXPECT_TRUE(Parse(Body(R"("echo": true)")).echo);
}

TEST(OpenAiCompletionTest, ReadsEveryShapeOfPrompt) {
  EXPECT_EQ(Parse(R"({"prompt": ["one"]})").prompts[0].text(), "one");
  EXPECT_THAT(Parse(R"({"prompt": [1, 2, 3]})").prompts[0].token_ids().ids(),
              ElementsAre(1u, 2u, 3u));
  const OpenAiCompletionRequest several =
      Parse(R"({"prompt": ["one", [7, 8]], "n": 2, "seed": 1, "max_tokens": 3})");
  ASSERT_EQ(several.num_choices(), 4);
  EXPECT_EQ(several.Choice(1).text(), "one");
  EXPECT_EQ(several.Choice(1).sampling().seed(), 2u);
  EXPECT_THAT(several.Choice(2).token_ids().ids(), ElementsAre(7u, 8u));
  EXPECT_EQ(several.Choice(2).sampling().seed(), 1u);
  EXPECT_EQ(several.Choice(3).max_tokens(), 3u);
}

struct ErrorCase {
  std::string body;
  std::string message;
};

TEST(OpenAiCompletionTest, NamesWhatIsWrong) {
  const std::vector<ErrorCase> cases = {
      {"1", "the body is 1, want an object"},
      {"{}", "prompt is missing, want a string or a list"},
      {R"({"prompt": 5})", "prompt is 5, want a string, a list of token ids or"},
      {R"({"prompt": []})", "prompt is an empty list, want at least one item"},
      {R"({"prompt": [1, "a"]})", R"(prompt[1] is "a", want a token id)"},
      {R"({"prompt": ["a", 1]})", "prompt[1] is 1, want a string or a list of token ids"},
      {R"({"prompt": ["a", [1, -1]]})", "prompt[1][1] is -1, want a token id"},
      {R"({"prompt": ["a", "b", "c"], "n": 6})", "prompt is a list of 3, want at most 2 with n 6"},
      {Body(R"("logprobs": true)"), "logprobs is true, want an integer in 0..20"},
      {Body(R"("logprobs": 21)"), "logprobs is 21, want an integer in 0..20"},
      {Body(R"("logprobs": 1, "echo": true)"), "logprobs is given and echo is true, want one"},
      {Body(R"("echo": 1)"), "echo is 1, want true or false"},
      {Body(R"("suffix": "end")"), R"(suffix is "end", want none)"},
      {Body(R"("best_of": 2)"), "best_of is 2, want 1, as n"},
      {Body(R"("max_tokens": -1)"), "max_tokens is -1, want an integer in 0.."},
      {Body(R"("temperature": "x")"), R"(temperature is "x", want a number)"},
      {Body(R"("response_format": {"type": "json_object"})"), "response_format.type is"},
      {Body(R"("enable_thinking": false)"), "enable_thinking is false, want none"},
      {Body(R"("answer_reserve": 3)"), "answer_reserve is 3, want none"},
      {Body(R"("early_stop_text": "x")"), "early_stop_text is given, want none"},
      {Body(R"("thinking_budget": 1, "thinking_token_budget": 2)"),
       "thinking_budget is 1 and thinking_token_budget is 2, want one meaning"},
  };
  for (const ErrorCase& c : cases) {
    EXPECT_THAT(ParseOpenAiCompletion(c.body),
                StatusIs(absl::StatusCode::kInvalidArgument, StartsWith(c.message)))
        << c.body;
  }
}

}  // namespace
}  // namespace conclave
