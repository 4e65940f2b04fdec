#include "router/prompt_builder.h"

#include <cmath>
#include <limits>
#include <string>

#include "common/limits.h"
#include "tests/router/test_router.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kEmptyThinking[] = "<think>\n\n</think>\n\n";

std::string PromptText(const PreparedRequest& prepared) {
  const auto& ids = prepared.tokens.prompt_ids();
  return TestModel().tokenizer->Decode(absl::MakeConstSpan(ids.data(), ids.size()),
                                       /*skip_special=*/false);
}

absl::StatusOr<PreparedRequest> Prepare(const v1::ChatRequest& request,
                                        const ServedModel& model = TestModel()) {
  return PrepareChat(model, request, kTestContext);
}
absl::StatusOr<PreparedRequest> Prepare(const v1::GenerateRequest& request) {
  return PrepareGenerate(TestModel(), request, kTestContext);
}

TEST(PromptBuilder, RendersTheTemplateAndLeavesTheContextToTheAnswer) {
  ASSERT_OK_AND_ASSIGN(const PreparedRequest prepared, Prepare(UserSays("hi")));
  EXPECT_EQ(PromptText(prepared), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(prepared.tokens.max_tokens(), kTestContext - prepared.tokens.prompt_ids_size());
  EXPECT_THAT(prepared.tokens.stop_ids(),
              ElementsAre(AddedId("<|endoftext|>"), AddedId("<|im_end|>")));
  const v1::ThinkingParams& thinking = prepared.tokens.thinking();
  EXPECT_TRUE(thinking.enabled());
  EXPECT_EQ(thinking.start_id(), AddedId("<think>"));
  EXPECT_EQ(thinking.end_id(), AddedId("</think>"));
  EXPECT_EQ(thinking.tool_call_start_id(), AddedId("<tool_call>"));
  EXPECT_EQ(thinking.tool_call_end_id(), AddedId("</tool_call>"));
  EXPECT_EQ(thinking.budget(), -1);
  EXPECT_EQ(thinking.answer_reserve(), 256u);
  EXPECT_FALSE(thinking.starts_inside());
  EXPECT_EQ(std::vector<uint32_t>(thinking.forced_ids().begin(), thinking.forced_ids().end()),
            Encode(kDefaultEarlyStopText));
}

TEST(PromptBuilder, TheModePicksTheSamplingDefaults) {
  ASSERT_OK_AND_ASSIGN(PreparedRequest prepared, Prepare(UserSays("hi")));
  EXPECT_FLOAT_EQ(prepared.tokens.sampling().temperature(), 0.6f);
  EXPECT_FLOAT_EQ(prepared.tokens.sampling().top_p(), 0.95f);
  EXPECT_EQ(prepared.tokens.sampling().top_k(), 20u);
  EXPECT_EQ(prepared.thinking.mode(), v1::THINKING_MODE_THINKING);
  EXPECT_EQ(prepared.thinking.source(), v1::THINKING_SOURCE_DEFAULT);

  ASSERT_OK_AND_ASSIGN(prepared, Prepare(UserSays("hi /no_think")));
  EXPECT_FLOAT_EQ(prepared.tokens.sampling().temperature(), 0.7f);
  EXPECT_FLOAT_EQ(prepared.tokens.sampling().top_p(), 0.8f);
  EXPECT_EQ(prepared.thinking.mode(), v1::THINKING_MODE_OFF);
  EXPECT_EQ(prepared.thinking.source(), v1::THINKING_SOURCE_SOFT_SWITCH);
  // The model follows a soft switch by itself: the prompt stays open.
  EXPECT_THAT(PromptText(prepared), Not(EndsWith(kEmptyThinking)));

  v1::ChatRequest request = UserSays("hi /think");
  request.mutable_thinking()->set_enable_thinking(false);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_seed(7);
  ASSERT_OK_AND_ASSIGN(prepared, Prepare(request));
  EXPECT_EQ(prepared.tokens.sampling().temperature(), 0);  // a field given beats every default
  EXPECT_FLOAT_EQ(prepared.tokens.sampling().top_p(), 0.8f);
  EXPECT_EQ(prepared.tokens.sampling().seed(), 7u);
  EXPECT_EQ(prepared.thinking.source(), v1::THINKING_SOURCE_REQUEST);
  EXPECT_THAT(PromptText(prepared), EndsWith(kEmptyThinking));
}

TEST(PromptBuilder, ABudgetOfZeroTurnsThinkingOff) {
  v1::ChatRequest request = UserSays("hi /think");
  request.mutable_thinking()->set_enable_thinking(true);
  request.mutable_thinking()->set_budget(0);
  ASSERT_OK_AND_ASSIGN(const PreparedRequest prepared, Prepare(request));
  EXPECT_EQ(prepared.thinking.mode(), v1::THINKING_MODE_OFF);
  EXPECT_EQ(prepared.thinking.source(), v1::THINKING_SOURCE_REQUEST);
  EXPECT_EQ(prepared.thinking.budget(), 0);
  EXPECT_THAT(PromptText(prepared), EndsWith(kEmptyThinking));
  // A block the model opens all the same ends at once.
  EXPECT_TRUE(prepared.tokens.thinking().enabled());
  EXPECT_EQ(prepared.tokens.thinking().budget(), 0);
}

TEST(PromptBuilder, AServerWhoseDefaultIsOffClosesThePrompt) {
  const auto model = LoadTestModel("qwen3", ThinkingMode::kOff);
  ASSERT_OK_AND_ASSIGN(PreparedRequest prepared, Prepare(UserSays("hi"), *model));
  EXPECT_EQ(prepared.thinking.mode(), v1::THINKING_MODE_OFF);
  EXPECT_EQ(prepared.thinking.source(), v1::THINKING_SOURCE_DEFAULT);
  EXPECT_THAT(PromptText(prepared), EndsWith(kEmptyThinking));

  ASSERT_OK_AND_ASSIGN(prepared, Prepare(UserSays("hi /think"), *model));
  EXPECT_EQ(prepared.thinking.mode(), v1::THINKING_MODE_THINKING);
  EXPECT_THAT(PromptText(prepared), Not(EndsWith(kEmptyThinking)));
}

TEST(PromptBuilder, Models2507HaveOneMode) {
  const auto thinking = LoadTestModel("thinking-2507");
  v1::ChatRequest request = UserSays("hi");
  request.mutable_thinking()->set_budget(0);
  ASSERT_OK_AND_ASSIGN(PreparedRequest prepared, Prepare(request, *thinking));
  EXPECT_EQ(prepared.thinking.mode(), v1::THINKING_MODE_THINKING);
  EXPECT_EQ(prepared.thinking.source(), v1::THINKING_SOURCE_MODEL);
  EXPECT_TRUE(prepared.tokens.thinking().starts_inside());
  EXPECT_EQ(prepared.tokens.thinking().budget(), 0);
  EXPECT_THAT(PromptText(prepared), EndsWith("<think>\n"));

  const auto instruct = LoadTestModel("instruct-2507");
  request.mutable_thinking()->set_enable_thinking(true);
  ASSERT_OK_AND_ASSIGN(prepared, Prepare(request, *instruct));
  EXPECT_EQ(prepared.thinking.mode(), v1::THINKING_MODE_OFF);
  EXPECT_EQ(prepared.thinking.source(), v1::THINKING_SOURCE_MODEL);
  EXPECT_FALSE(prepared.tokens.thinking().starts_inside());
}

v1::ChatRequest WithTools(v1::ToolChoice::Kind kind, const std::string& name = "") {
  v1::ChatRequest request = UserSays("hi");
  request.add_tools(R"({"type": "function", "function": {"name": "f", "parameters": {}}})");
  request.add_tools(R"({"type": "function", "function": {"name": "g\"", "parameters": {}}})");
  request.mutable_tool_choice()->set_kind(kind);
  request.mutable_tool_choice()->set_name(name);
  return request;
}

std::string PrefixText(const PreparedRequest& prepared) {
  const auto& ids = prepared.tokens.thinking().answer_prefix_ids();
  return TestModel().tokenizer->Decode(absl::MakeConstSpan(ids.data(), ids.size()),
                                       /*skip_special=*/false);
}

TEST(PromptBuilder, AToolChoiceForcesHowTheAnswerBegins) {
  ASSERT_OK_AND_ASSIGN(PreparedRequest prepared, Prepare(WithTools(v1::ToolChoice::AUTO)));
  EXPECT_EQ(PrefixText(prepared), "");
  EXPECT_TRUE(prepared.parse_tool_calls);

  ASSERT_OK_AND_ASSIGN(prepared, Prepare(WithTools(v1::ToolChoice::NONE)));
  EXPECT_THAT(PromptText(prepared), Not(HasSubstr("# Tools")));
  EXPECT_FALSE(prepared.parse_tool_calls);

  ASSERT_OK_AND_ASSIGN(prepared, Prepare(WithTools(v1::ToolChoice::REQUIRED)));
  EXPECT_EQ(PrefixText(prepared), "<tool_call>\n{\"name\": \"");
  EXPECT_TRUE(prepared.tokens.thinking().starts_inside());
  EXPECT_THAT(PromptText(prepared), EndsWith("<|im_start|>assistant\n<think>\n"));

  v1::ChatRequest request = WithTools(v1::ToolChoice::NAMED, "g\"");
  request.mutable_messages(0)->set_content("hi /no_think");
  ASSERT_OK_AND_ASSIGN(prepared, Prepare(request));
  EXPECT_EQ(PrefixText(prepared), "<tool_call>\n{\"name\": \"g\\\"\", \"arguments\":");
  EXPECT_FALSE(prepared.tokens.thinking().starts_inside());
  EXPECT_THAT(PromptText(prepared), EndsWith("<think>\n\n</think>\n\n"));

  EXPECT_THAT(Prepare(WithTools(v1::ToolChoice::NAMED, "h")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"h\"")));
  request = WithTools(v1::ToolChoice::REQUIRED);
  request.clear_tools();
  EXPECT_THAT(Prepare(request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("without tools")));
}

TEST(PromptBuilder, TheReserveFitsIntoMaxTokens) {
  const uint32_t forced = static_cast<uint32_t>(Encode(kDefaultEarlyStopText).size());
  const auto reserve_of = [](uint32_t max_tokens) {
    v1::ChatRequest request = UserSays("hi");
    request.set_max_tokens(max_tokens);
    return Prepare(request)->tokens.thinking().answer_reserve();
  };
  EXPECT_EQ(reserve_of(forced + 4000), 256u);
  EXPECT_EQ(reserve_of(4 * forced), std::min(256u, 3 * forced / 4));
  // Too small for the early-stop text's words: </think> alone, and still room for an answer.
  const uint32_t shortest = static_cast<uint32_t>(Encode(kShortEarlyStopText).size());
  EXPECT_EQ(reserve_of(forced), (forced - shortest) / 4);
  EXPECT_EQ(reserve_of(shortest + 2), 1u);

  v1::ChatRequest request = UserSays("hi");
  request.set_max_tokens(shortest + 1);  // <think>, </think>, and nothing
  EXPECT_THAT(Prepare(request), StatusIs(absl::StatusCode::kInvalidArgument,
                                         HasSubstr(absl::StrCat("want ", shortest + 2))));
  request.mutable_thinking()->set_enable_thinking(false);
  EXPECT_OK(Prepare(request));
  request.mutable_thinking()->clear_enable_thinking();
  request.mutable_thinking()->set_answer_reserve(0);  // the caller wants none
  EXPECT_OK(Prepare(request));
  request.set_max_tokens(shortest + 10);
  request.mutable_thinking()->set_answer_reserve(9);
  ASSERT_OK(Prepare(request));
  request.mutable_thinking()->set_answer_reserve(10);
  EXPECT_THAT(Prepare(request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("answer_reserve is 10")));
  request.mutable_thinking()->set_answer_reserve(std::numeric_limits<uint32_t>::max());
  EXPECT_THAT(Prepare(request), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(PromptBuilder, AnEarlyStopTextMustEndThinkingOnce) {
  v1::ChatRequest request = UserSays("hi");
  request.mutable_thinking()->set_early_stop_text("enough</think>");
  ASSERT_OK(Prepare(request));
  for (const std::string& bad :
       {std::string("enough"), std::string(""), std::string("</think></think>"),
        std::string("<think></think>"), std::string("</think><|im_end|>"),
        std::string("\xff</think>"), std::string(limits::kMaxForcedIds, 'a') + "</think>"}) {
    request.mutable_thinking()->set_early_stop_text(bad);
    EXPECT_THAT(Prepare(request), StatusIs(absl::StatusCode::kInvalidArgument)) << bad;
  }
}

TEST(PromptBuilder, ConversationsAreDecoded) {
  v1::ChatRequest request = UserSays("what is the weather?");
  v1::ChatMessage* call = request.add_messages();
  call->set_role("assistant");
  v1::ToolCall* tool_call = call->add_tool_calls();
  tool_call->set_name("weather");
  tool_call->set_arguments("{\"town\":\"Bonn\"}");
  v1::ChatMessage* result = request.add_messages();
  result->set_role("tool");
  result->set_content("sunny");
  request.add_tools("{\"type\":\"function\",\"function\":{\"name\":\"weather\"}}");
  ASSERT_OK_AND_ASSIGN(const PreparedRequest prepared, Prepare(request));
  EXPECT_TRUE(prepared.parse_tool_calls);
  const std::string text = PromptText(prepared);
  EXPECT_THAT(text, HasSubstr("<tools>\n{\"type\": \"function\""));
  EXPECT_THAT(text, HasSubstr("{\"name\": \"weather\", \"arguments\": {\"town\": \"Bonn\"}}"));
  EXPECT_THAT(text, HasSubstr("<tool_response>\nsunny\n</tool_response>"));
}

TEST(PromptBuilder, RefusesWhatItCannotRead) {
  const auto expect_invalid = [](const v1::ChatRequest& request, const std::string& words) {
    EXPECT_THAT(Prepare(request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(words)));
  };
  expect_invalid(v1::ChatRequest(), "messages is empty");
  v1::ChatRequest request = UserSays("hi");
  request.mutable_messages(0)->set_role("developer");
  expect_invalid(request, "role of message 0 is \"developer\"");
  request = UserSays("hi");
  request.add_tools("[1]");
  expect_invalid(request, "tool 0");
  request = UserSays("hi");
  request.add_tools("{");
  expect_invalid(request, "tool 0");
  request = UserSays("hi");
  request.mutable_messages(0)->add_tool_calls()->set_name("f");
  expect_invalid(request, "tool_calls");
  request = UserSays("hi");
  request.add_messages()->set_role("assistant");
  request.mutable_messages(1)->add_tool_calls();
  expect_invalid(request, "no name");
  request.mutable_messages(1)->mutable_tool_calls(0)->set_name("f");
  request.mutable_messages(1)->mutable_tool_calls(0)->set_arguments("{broken");
  expect_invalid(request, "arguments of tool call f");
  expect_invalid(UserSays("bad \xc3\x28 bytes"), "UTF-8");
  request = UserSays("hi");
  request.mutable_thinking()->set_budget(-2);
  expect_invalid(request, "thinking budget is -2");
  request = UserSays("hi");
  request.set_max_tokens(0);
  expect_invalid(request, "max_tokens is 0");
}

TEST(PromptBuilder, RefusesWhatIsTooMuch) {
  const auto expect_invalid = [](const v1::ChatRequest& request, const std::string& words) {
    EXPECT_THAT(Prepare(request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(words)));
  };
  expect_invalid(UserSays(std::string(limits::kMaxPromptBytes + 1, 'a')), "text in bytes");
  v1::ChatRequest request;
  for (int i = 0; i <= limits::kMaxMessages; ++i)
    *request.add_messages() = UserSays("a").messages(0);
  expect_invalid(request, "number of messages");
  request = UserSays("hi");
  for (int i = 0; i <= limits::kMaxTools; ++i) request.add_tools("{}");
  expect_invalid(request, "number of tools");
  request = UserSays("hi");
  for (int i = 0; i <= limits::kMaxStopStrings; ++i) request.add_stop("x");
  expect_invalid(request, "number of stop strings");
  request = UserSays("hi");
  request.add_stop("");
  expect_invalid(request, "size of a stop string");
  request.set_stop(0, std::string(limits::kMaxStopStringBytes + 1, 'x'));
  expect_invalid(request, "size of a stop string");
  request = UserSays("hi");
  for (int i = 0; i < limits::kMaxStopIds; ++i) request.add_stop_ids(i);
  expect_invalid(request, "number of stop_ids");
  request = UserSays("hi");
  request.add_stop_ids(282);
  expect_invalid(request, "id in stop_ids is 282");
}

TEST(PromptBuilder, PromptAndAnswerShareTheContext) {
  v1::ChatRequest request = UserSays(std::string(kTestContext, 'a'));
  EXPECT_THAT(Prepare(request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("maximum context length")));
  request = UserSays("hi");
  request.set_max_tokens(kTestContext);
  EXPECT_THAT(Prepare(request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("maximum context length")));
  const int prompt = Prepare(UserSays("hi"))->tokens.prompt_ids_size();
  request.set_max_tokens(kTestContext - prompt);
  EXPECT_OK(Prepare(request));
  request.set_max_tokens(std::numeric_limits<uint32_t>::max());
  EXPECT_THAT(Prepare(request), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(PromptBuilder, AnotherModelIsNotFound) {
  v1::ChatRequest request = UserSays("hi");
  request.set_model("gpt-4");
  EXPECT_THAT(Prepare(request), StatusIs(absl::StatusCode::kNotFound, HasSubstr("tiny")));
  request.set_model("tiny");
  EXPECT_OK(Prepare(request));
}

TEST(PromptBuilder, SamplingFieldsHaveRanges) {
  const auto with = [](auto set) {
    v1::ChatRequest request = UserSays("hi");
    set(*request.mutable_sampling());
    return Prepare(request).status();
  };
  const float nan = std::nanf("");
  using S = v1::SamplingOptions;
  const auto invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  for (float bad : {-0.1f, 2.1f, nan, std::numeric_limits<float>::infinity()}) {
    EXPECT_THAT(with([&](S& s) { s.set_temperature(bad); }), invalid) << bad;
  }
  for (float bad : {0.f, 1.1f, nan}) EXPECT_THAT(with([&](S& s) { s.set_top_p(bad); }), invalid);
  for (float bad : {-0.1f, 1.1f, nan}) EXPECT_THAT(with([&](S& s) { s.set_min_p(bad); }), invalid);
  for (float bad : {-2.1f, 2.1f, nan}) {
    EXPECT_THAT(with([&](S& s) { s.set_presence_penalty(bad); }), invalid);
    EXPECT_THAT(with([&](S& s) { s.set_frequency_penalty(bad); }), invalid);
  }
  for (float bad : {0.f, 10.1f, nan}) {
    EXPECT_THAT(with([&](S& s) { s.set_repetition_penalty(bad); }), invalid);
  }
  EXPECT_THAT(with([&](S& s) { s.set_top_k(1u << 31); }), invalid);
  EXPECT_THAT(with([&](S& s) { s.set_top_logprobs(1); }), invalid);
  EXPECT_THAT(with([&](S& s) {
                s.set_logprobs(true);
                s.set_top_logprobs(limits::kMaxTopLogprobs + 1);
              }),
              invalid);
  EXPECT_THAT(with([&](S& s) { (*s.mutable_logit_bias())[282] = 1; }), invalid);
  EXPECT_THAT(with([&](S& s) { (*s.mutable_logit_bias())[1] = 101; }), invalid);
  EXPECT_THAT(with([&](S& s) { (*s.mutable_logit_bias())[1] = nan; }), invalid);
  EXPECT_THAT(with([&](S& s) {
                for (int i = 0; i <= limits::kMaxLogitBiases; ++i) (*s.mutable_logit_bias())[i] = 0;
              }),
              invalid);
  EXPECT_OK(with([&](S& s) {
    s.set_logprobs(true);
    s.set_top_logprobs(limits::kMaxTopLogprobs);
    s.set_temperature(2);
    s.set_top_p(1);
    s.set_top_k(0);
    (*s.mutable_logit_bias())[281] = -100;
  }));
}

TEST(PromptBuilder, SeedsAreDrawn) {
  EXPECT_NE(Prepare(UserSays("hi"))->tokens.sampling().seed(),
            Prepare(UserSays("hi"))->tokens.sampling().seed());
}

TEST(PromptBuilder, RawPromptsKeepTheirIds) {
  v1::GenerateRequest request = Complete("a<|im_end|>");
  ASSERT_OK_AND_ASSIGN(PreparedRequest prepared, Prepare(request));
  EXPECT_THAT(prepared.tokens.prompt_ids(), ElementsAre(Encode("a")[0], AddedId("<|im_end|>")));
  EXPECT_EQ(prepared.thinking.mode(), v1::THINKING_MODE_UNSPECIFIED);
  EXPECT_EQ(prepared.tokens.thinking().answer_reserve(), 0u);
  request.mutable_token_ids()->add_ids(281);
  ASSERT_OK(Prepare(request));
  request.mutable_token_ids()->add_ids(282);
  EXPECT_THAT(Prepare(request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("id in the prompt is 282")));
  request.mutable_token_ids()->clear_ids();
  EXPECT_THAT(Prepare(request), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Prepare(v1::GenerateRequest()), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Prepare(Complete("\xff")), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(PromptBuilder, OnlyScoringMayGenerateNothing) {
  v1::GenerateRequest request = Complete("abc");
  request.set_max_tokens(0);
  EXPECT_THAT(Prepare(request), StatusIs(absl::StatusCode::kInvalidArgument));
  request.set_prompt_logprobs(true);
  ASSERT_OK_AND_ASSIGN(const PreparedRequest prepared, Prepare(request));
  EXPECT_TRUE(prepared.tokens.prompt_logprobs());
  EXPECT_EQ(prepared.tokens.max_tokens(), 0u);
}

TEST(PromptBuilder, ARawPromptMayEndInsideThinking) {
  v1::GenerateRequest request = Complete("<think>\nlet me");
  request.set_thinking_budget(5);
  ASSERT_OK_AND_ASSIGN(PreparedRequest prepared, Prepare(request));
  EXPECT_TRUE(prepared.tokens.thinking().starts_inside());
  EXPECT_EQ(prepared.tokens.thinking().budget(), 5);
  ASSERT_OK_AND_ASSIGN(prepared, Prepare(Complete("<think>a</think>b")));
  EXPECT_FALSE(prepared.tokens.thinking().starts_inside());
}

TEST(PromptBuilder, RequestIdsAreShortAndPlain) {
  EXPECT_OK(ValidateRequestId("abc-DEF_1.2:3/4"));
  EXPECT_OK(ValidateRequestId(std::string(limits::kMaxRequestIdBytes, 'a')));
  for (const std::string& bad :
       {std::string(""), std::string(limits::kMaxRequestIdBytes + 1, 'a'), std::string("a b"),
        std::string("a\n"), std::string("\xc3\xa4"), std::string("a#1")}) {
    EXPECT_THAT(ValidateRequestId(bad), StatusIs(absl::StatusCode::kInvalidArgument)) << bad;
  }
}

}  // namespace
}  // namespace conclave
