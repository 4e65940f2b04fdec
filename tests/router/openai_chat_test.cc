#include "router/openai_chat.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

constexpr char kMessages[] = R"("messages": [{"role": "user", "content": "Hi"}])";
constexpr char kTool[] =
    R"({"type": "function", "function": {"name": "add", "parameters": {"maximum": 1.0}}})";

// A body with one user message and `members`.
std::string Body(absl::string_view members) {
  return absl::StrCat("{", kMessages, members.empty() ? "" : ", ", members, "}");
}

OpenAiChatRequest Parse(absl::string_view body) {
  absl::StatusOr<OpenAiChatRequest> request = ParseOpenAiChat(body);
  EXPECT_THAT(request, IsOk()) << body;
  return request.ok() ? *std::move(request) : OpenAiChatRequest();
}

std::string Messages(absl::string_view list) {
  return absl::StrCat(R"({"messages": [)", list, "]}");
}

v1::ChatMessage Message(absl::string_view json) {
  const OpenAiChatRequest request = Parse(Messages(json));
  return request.chat.messages_size() == 1 ? request.chat.messages(0) : v1::ChatMessage();
}

TEST(OpenAiChatTest, LeavesWhatIsNotGivenToTheEngine) {
  const OpenAiChatRequest request = Parse(Body(""));
  v1::ChatRequest expected;
  v1::ChatMessage* message = expected.add_messages();
  message->set_role("user");
  message->set_content("Hi");
  expected.mutable_sampling();
  expected.mutable_thinking();
  expected.mutable_tool_choice();
  EXPECT_EQ(request.chat.ShortDebugString(), expected.ShortDebugString());
  EXPECT_EQ(request.num_choices(), 1);
  EXPECT_FALSE(request.answer.stream);
  EXPECT_FALSE(request.answer.include_usage);
  EXPECT_FALSE(request.answer.thinking_report);
  EXPECT_TRUE(request.answer.include_reasoning);
  EXPECT_FALSE(request.answer.one_tool_call);
  EXPECT_FALSE(request.answer.logprobs);
}

TEST(OpenAiChatTest, TakesNullAsNotGivenAndIgnoresUnknownKeys) {
  std::string nulls = R"("surprise": {"deep": [1]}, "user": "me", "metadata": {}, "store": true)";
  for (const char* key : {"model",
                          "max_tokens",
                          "max_completion_tokens",
                          "temperature",
                          "top_p",
                          "top_k",
                          "min_p",
                          "presence_penalty",
                          "frequency_penalty",
                          "repetition_penalty",
                          "seed",
                          "stop",
                          "stop_token_ids",
                          "ignore_eos",
                          "logit_bias",
                          "logprobs",
                          "top_logprobs",
                          "n",
                          "stream",
                          "stream_options",
                          "response_format",
                          "tools",
                          "parallel_tool_calls",
                          "tool_choice",
                          "functions",
                          "function_call",
                          "enable_thinking",
                          "thinking_budget",
                          "reasoning_effort",
                          "chat_template_kwargs",
                          "extra_body",
                          "thinking",
                          "reasoning",
                          "nvext",
                          "custom_params",
                          "thinking_report",
                          "include_reasoning",
                          "early_stop_text",
                          "answer_reserve"}) {
    absl::StrAppend(&nulls, ", \"", key, "\": null");
  }
  EXPECT_EQ(Parse(Body(nulls)).chat.ShortDebugString(), Parse(Body("")).chat.ShortDebugString());
}

TEST(OpenAiChatTest, ReadsSampling) {
  const OpenAiChatRequest request = Parse(Body(R"(
      "model": "qwen", "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125,
      "presence_penalty": -1, "frequency_penalty": 1.5, "repetition_penalty": 2, "seed": 42,
      "logit_bias": {"5": -100, "7": 1.5}, "logprobs": true, "top_logprobs": 3,
      "stop": ["a", "b"], "stop_token_ids": [1, 2.0], "ignore_eos": true, "max_tokens": 9)"));
  EXPECT_EQ(request.chat.model(), "qwen");
  const v1::SamplingOptions& sampling = request.chat.sampling();
  EXPECT_EQ(sampling.temperature(), 0.5f);
  EXPECT_EQ(sampling.top_p(), 0.25f);
  EXPECT_EQ(sampling.top_k(), 7u);
  EXPECT_EQ(sampling.min_p(), 0.125f);
  EXPECT_EQ(sampling.presence_penalty(), -1.0f);
  EXPECT_EQ(sampling.frequency_penalty(), 1.5f);
  EXPECT_EQ(sampling.repetition_penalty(), 2.0f);
  EXPECT_EQ(sampling.seed(), 42u);
  EXPECT_EQ(sampling.logit_bias().at(5), -100.0f);
  EXPECT_EQ(sampling.logit_bias().at(7), 1.5f);
  EXPECT_TRUE(sampling.logprobs());
  EXPECT_TRUE(request.answer.logprobs);
  EXPECT_EQ(sampling.top_logprobs(), 3u);
  EXPECT_THAT(request.chat.stop(), ElementsAre("a", "b"));
  EXPECT_THAT(request.chat.stop_ids(), ElementsAre(1u, 2u));
  EXPECT_TRUE(request.chat.ignore_eos());
  EXPECT_EQ(request.chat.max_tokens(), 9u);
}

TEST(OpenAiChatTest, ReadsOtherSpellings) {
  EXPECT_EQ(Parse(Body(R"("top_k": -1)")).chat.sampling().top_k(), 0u);
  EXPECT_TRUE(Parse(Body(R"("top_k": -1)")).chat.sampling().has_top_k());
  EXPECT_EQ(Parse(Body(R"("seed": -1)")).chat.sampling().seed(), ~uint64_t{0});
  EXPECT_EQ(Parse(Body(R"("seed": 18446744073709551615)")).chat.sampling().seed(), ~uint64_t{0});
  EXPECT_THAT(Parse(Body(R"("stop": "x")")).chat.stop(), ElementsAre("x"));
  EXPECT_THAT(Parse(Body(R"("stop": [])")).chat.stop(), IsEmpty());
  EXPECT_EQ(Parse(Body(R"("max_completion_tokens": 5)")).chat.max_tokens(), 5u);
  EXPECT_EQ(Parse(Body(R"("max_completion_tokens": 5, "max_tokens": 5.0)")).chat.max_tokens(), 5u);
  EXPECT_THAT(Parse(Body(R"("response_format": {"type": "text"})")).chat.tools(), IsEmpty());
}

TEST(OpenAiChatTest, ReadsHowTheAnswerIsWritten) {
  const OpenAiChatRequest request = Parse(Body(R"(
      "n": 3, "stream": true, "stream_options": {"include_usage": true, "other": 1},
      "thinking_report": true, "include_reasoning": false, "parallel_tool_calls": false)"));
  EXPECT_EQ(request.num_choices(), 3);
  EXPECT_TRUE(request.answer.stream);
  EXPECT_TRUE(request.answer.include_usage);
  EXPECT_TRUE(request.answer.thinking_report);
  EXPECT_FALSE(request.answer.include_reasoning);
  EXPECT_TRUE(request.answer.one_tool_call);
  EXPECT_FALSE(Parse(Body(R"("parallel_tool_calls": true)")).answer.one_tool_call);
}

TEST(OpenAiChatTest, GivesEveryChoiceASeedOfItsOwn) {
  const OpenAiChatRequest request = Parse(Body(R"("n": 2, "seed": -1)"));
  EXPECT_EQ(request.Choice(0).sampling().seed(), ~uint64_t{0});
  EXPECT_EQ(request.Choice(1).sampling().seed(), 0u);
  EXPECT_FALSE(Parse(Body(R"("n": 2)")).Choice(1).sampling().has_seed());
}

TEST(OpenAiChatTest, ReadsEveryShapeOfContent) {
  EXPECT_EQ(Message(R"({"role": "user", "content": "a"})").content(), "a");
  EXPECT_EQ(Message(R"({"role": "user", "content": null})").content(), "");
  EXPECT_EQ(Message(R"({"role": "assistant"})").content(), "");
  EXPECT_EQ(Message(R"({"role": "user", "content": [{"type": "text", "text": "a"},
                        {"type": "text", "text": "b"}], "name": "me", "extra": {}})")
                .content(),
            "a\nb");
  EXPECT_EQ(Message(R"({"role": "developer", "content": "a"})").role(), "system");
}

TEST(OpenAiChatTest, ReadsThinkingOfEarlierTurns) {
  EXPECT_EQ(Message(R"({"role": "assistant", "reasoning_content": "r"})").reasoning_content(), "r");
  EXPECT_EQ(Message(R"({"role": "assistant", "reasoning": "r"})").reasoning_content(), "r");
  EXPECT_EQ(Message(R"({"role": "assistant", "reasoning_content": "a", "reasoning": "b"})")
                .reasoning_content(),
            "a");
  EXPECT_TRUE(Message(R"({"role": "assistant", "reasoning": ""})").has_reasoning_content());
  EXPECT_FALSE(
      Message(R"({"role": "assistant", "reasoning_content": null})").has_reasoning_content());
  EXPECT_FALSE(Message(R"({"role": "user", "reasoning": 5})").has_reasoning_content());
}

TEST(OpenAiChatTest, ReadsToolCallsAndTheirResults) {
  const v1::ChatMessage message = Message(R"({"role": "assistant", "function_call": null,
      "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
        {"function": {"name": "g", "arguments": {"x": 1.50, "b": [1]}}},
        {"function": {"name": "h"}}]})");
  ASSERT_EQ(message.tool_calls_size(), 3);
  EXPECT_EQ(message.tool_calls(0).id(), "call_1");
  EXPECT_EQ(message.tool_calls(0).name(), "f");
  EXPECT_EQ(message.tool_calls(0).arguments(), R"({"a": 1})");
  EXPECT_EQ(message.tool_calls(1).arguments(), R"({"x": 1.50, "b": [1]})");
  EXPECT_EQ(message.tool_calls(2).arguments(), "");
  EXPECT_EQ(Message(R"({"role": "tool", "tool_call_id": "c"})").tool_call_id(), "c");
  EXPECT_EQ(Message(R"({"role": "tool", "id": "c", "name": "f"})").tool_call_id(), "c");
}

TEST(OpenAiChatTest, KeepsToolsAsTheyWereWritten) {
  const OpenAiChatRequest request = Parse(Body(absl::StrCat(R"("tools": [)", kTool, "]")));
  EXPECT_THAT(request.chat.tools(), ElementsAre(kTool));
  EXPECT_EQ(request.chat.tool_choice().kind(), v1::ToolChoice::AUTO);
  EXPECT_THAT(Parse(Body(R"("tools": [])")).chat.tools(), IsEmpty());
}

TEST(OpenAiChatTest, ReadsToolChoice) {
  const auto choice = [](absl::string_view json) {
    return Parse(Body(absl::StrCat(R"("tools": [)", kTool, R"(], "tool_choice": )", json)))
        .chat.tool_choice();
  };
  EXPECT_EQ(choice(R"("auto")").kind(), v1::ToolChoice::AUTO);
  EXPECT_EQ(choice(R"("none")").kind(), v1::ToolChoice::NONE);
  EXPECT_EQ(choice(R"("required")").kind(), v1::ToolChoice::REQUIRED);
  const v1::ToolChoice named = choice(R"({"type": "function", "function": {"name": "add"}})");
  EXPECT_EQ(named.kind(), v1::ToolChoice::NAMED);
  EXPECT_EQ(named.name(), "add");
}

struct ErrorCase {
  std::string body;
  std::string message;  // its beginning
};
void PrintTo(const ErrorCase& error, std::ostream* out) { *out << error.body; }

class OpenAiChatErrorTest : public testing::TestWithParam<ErrorCase> {};

TEST_P(OpenAiChatErrorTest, NamesTheField) {
  EXPECT_THAT(ParseOpenAiChat(GetParam().body),
              StatusIs(absl::StatusCode::kInvalidArgument, StartsWith(GetParam().message)))
      << GetParam().body;
}

std::vector<ErrorCase> BodyErrors() {
  return {
      {"{", "bad JSON at byte 1"},
      {"[]", "the body is an array, want an object"},
      {"{}", "messages is missing, want a list"},
      {R"({"messages": "x"})", R"(messages is "x", want a list)"},
  };
}

std::vector<ErrorCase> FieldErrors() {
  std::vector<ErrorCase> cases = {
      {R"("model": 1)", "model is 1, want a string"},
      {R"("max_tokens": "5")", R"(max_tokens is "5", want an integer in 0..4294967295)"},
      {R"("max_tokens": -1)", "max_tokens is -1, want an integer in 0.."},
      {R"("max_tokens": 1.5)", "max_tokens is 1.5, want an integer"},
      {R"("max_completion_tokens": 4294967296)", "max_completion_tokens is 4294967296, want"},
      {R"("max_tokens": 1, "max_completion_tokens": 2)",
       "max_tokens is 1 and max_completion_tokens is 2, want one meaning"},
      {R"("temperature": "hot")", R"(temperature is "hot", want a number)"},
      {R"("top_p": true)", "top_p is true, want a number"},
      {R"("min_p": [])", "min_p is an array, want a number"},
      {R"("presence_penalty": {})", "presence_penalty is an object, want a number"},
      {R"("frequency_penalty": "1")", R"(frequency_penalty is "1", want a number)"},
      {R"("repetition_penalty": "1")", R"(repetition_penalty is "1", want a number)"},
      {R"("top_k": -2)", "top_k is -2, want an integer in -1.."},
      {R"("seed": 1.5)", "seed is 1.5, want an integer of 64 bits"},
      {R"("seed": 18446744073709551616)", "seed is 18446744073709551616, want"},
      {R"("stop": 1)", "stop is 1, want a string or a list of strings"},
      {R"("stop": ["a", null])", "stop[1] is null, want a string"},
      {R"("stop_token_ids": 1)", "stop_token_ids is 1, want a list"},
      {R"("stop_token_ids": [-1])", "stop_token_ids[0] is -1, want a token id"},
      {R"("ignore_eos": 1)", "ignore_eos is 1, want true or false"},
      {R"("logit_bias": [])", "logit_bias is an array, want an object"},
      {R"("logit_bias": {"a b": 1})", R"(logit_bias is an object with the key "a b", want)"},
      {R"("logit_bias": {"7": "x"})", R"(logit_bias.7 is "x", want a number)"},
      {R"("logprobs": 1)", "logprobs is 1, want true or false"},
      {R"("top_logprobs": true)", "top_logprobs is true, want an integer"},
      {R"("n": 0)", "n is 0, want an integer in 1..16"},
      {R"("n": 17)", "n is 17, want an integer in 1..16"},
      {R"("stream": "yes")", R"(stream is "yes", want true or false)"},
      {R"("stream_options": true)", "stream_options is true, want an object"},
      {R"("stream_options": {"include_usage": 1})", "stream_options.include_usage is 1, want"},
      {R"("response_format": {"type": "json_object"})",
       R"(response_format.type is "json_object", want "text")"},
      {R"("response_format": {})", R"(response_format.type is null, want "text")"},
      {R"("response_format": "json")", R"(response_format is "json", want an object)"},
      {R"("functions": [])", "functions is an array, want none: use tools"},
      {R"("function_call": "auto")", R"(function_call is "auto", want none: use tool_choice)"},
      {R"("audio": {})", "audio is an object, want none"},
      {R"("guided_json": {})", "guided_json is an object, want none"},
      {R"("separate_reasoning": false)", "separate_reasoning is false, want true"},
      {R"("continue_final_message": true)", "continue_final_message is true, want false"},
      {R"("thinking_report": "true")", R"(thinking_report is "true", want true or false)"},
      {R"("include_reasoning": 0)", "include_reasoning is 0, want true or false"},
      {R"("parallel_tool_calls": 0)", "parallel_tool_calls is 0, want true or false"},
      {R"("tools": {})", "tools is an object, want a list"},
      {R"("tools": ["f"])", R"(tools[0] is "f", want an object)"},
      {R"("tools": [{"type": "web_search"}])", R"(tools[0].type is "web_search", want "function")"},
      {R"("tools": [{"function": {"name": "f"}}])", "tools[0].type is null, want"},
      {R"("tools": [{"type": "function"}])", "tools[0].function is missing, want an object"},
      {R"("tools": [{"type": "function", "function": {}}])", "tools[0].function.name is missing"},
      {R"("tool_choice": "always")", R"(tool_choice is "always", want auto, none, required or)"},
      {R"("tool_choice": {"type": "custom"})", R"(tool_choice.type is "custom", want "function")"},
      {R"("tool_choice": {"type": "function"})", "tool_choice.function is missing"},
      {R"("tool_choice": {"type": "function", "function": {}})",
       "tool_choice.function.name is missing"},
  };
  for (ErrorCase& error : cases) error.body = Body(error.body);
  return cases;
}

std::vector<ErrorCase> MessageErrors() {
  std::vector<ErrorCase> cases = {
      {"5", "messages[1] is 5, want an object"},
      {R"({"content": "x"})", "messages[1].role is missing, want a role"},
      {R"({"role": 1})", "messages[1].role is 1, want a string"},
      {R"({"role": "function"})", R"(messages[1].role is "function", want system, developer,)"},
      {R"({"role": "user", "content": 5})", "messages[1].content is a number, want"},
      {R"({"role": "user", "content": [{"type": "image_url"}]})",
       R"(messages[1].content[0].type is "image_url", want "text")"},
      {R"({"role": "assistant", "reasoning_content": {}})",
       "messages[1].reasoning_content is an object, want a string"},
      {R"({"role": "assistant", "reasoning": 1})", "messages[1].reasoning is 1, want a string"},
      {R"({"role": "assistant", "function_call": {}})",
       "messages[1].function_call is an object, want none: use tool_calls"},
      {R"({"role": "assistant", "tool_calls": {}})",
       "messages[1].tool_calls is an object, want a list"},
      {R"({"role": "assistant", "tool_calls": [1]})", "messages[1].tool_calls[0] is 1, want"},
      {R"({"role": "assistant", "tool_calls": [{}]})",
       "messages[1].tool_calls[0].function is missing"},
      {R"({"role": "assistant", "tool_calls": [{"function": {}}]})",
       "messages[1].tool_calls[0].function.name is missing"},
      {R"({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]})",
       "messages[1].tool_calls[0].function.arguments is 3, want an object, a string or null"},
      {R"({"role": "assistant", "tool_calls": [{"id": 1, "function": {"name": "f"}}]})",
       "messages[1].tool_calls[0].id is 1, want a string"},
      {R"({"role": "tool", "tool_call_id": 5})", "messages[1].tool_call_id is 5, want a string"},
  };
  for (ErrorCase& error : cases) {
    error.body = Messages(absl::StrCat(R"({"role": "user"}, )", error.body));
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Body, OpenAiChatErrorTest, testing::ValuesIn(BodyErrors()));
INSTANTIATE_TEST_SUITE_P(Fields, OpenAiChatErrorTest, testing::ValuesIn(FieldErrors()));
INSTANTIATE_TEST_SUITE_P(Messages, OpenAiChatErrorTest, testing::ValuesIn(MessageErrors()));

TEST(OpenAiChatTest, ShowsLongValuesCutBetweenCharacters) {
  std::string euros = "x";
  for (int i = 0; i < 40; ++i) euros += "€";
  const absl::Status status =
      ParseOpenAiChat(
          Body(absl::StrCat("\"stop\": [{}], \"model\": 1, ", R"("tool_choice": ")", euros, "\"")))
          .status();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("model is 1")));
  EXPECT_THAT(ParseOpenAiChat(Body(absl::StrCat(R"("tool_choice": ")", euros, "\""))),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       StartsWith(absl::StrCat("tool_choice is \"", euros.substr(0, 64), "\""))));
}

}  // namespace
}  // namespace conclave
