#include "router/openai_thinking.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

absl::StatusOr<v1::ThinkingOptions> Read(absl::string_view body) {
  absl::StatusOr<JsonValue> json = ParseJson(body);
  EXPECT_THAT(json, IsOk()) << body;
  if (!json.ok()) return json.status();
  return ReadThinking(OpenAiFields(*json, ""));
}

struct BudgetCase {
  std::string body;
  int64_t budget;
};

TEST(OpenAiThinkingTest, KnowsEveryNameOfTheBudget) {
  const std::vector<BudgetCase> cases = {
      {R"({"thinking_budget": 7})", 7},
      {R"({"thinking_token_budget": 7})", 7},
      {R"({"thinking_budget_tokens": 7})", 7},
      {R"({"nvext": {"max_thinking_tokens": 7}})", 7},
      {R"({"custom_params": {"thinking_budget": 7}})", 7},
      {R"({"chat_template_kwargs": {"thinking_budget": 7}})", 7},
      {R"({"thinking": {"budget_tokens": 7}})", 7},
      {R"({"reasoning": {"max_tokens": 7}})", 7},
      {R"({"extra_body": {"thinking_budget": 7}})", 7},
      {R"({"extra_body": {"chat_template_kwargs": {"thinking_budget": 7}}})", 7},
      {R"({"thinking_budget": 0})", 0},
      {R"({"thinking_budget": -1})", -1},
      {R"({"thinking_budget": 1024.0})", 1024},
      {R"({"reasoning_effort": "minimal"})", 256},
      {R"({"reasoning_effort": "low"})", 1024},
      {R"({"reasoning_effort": "medium"})", 4096},
      {R"({"reasoning_effort": "high"})", 16384},
      {R"({"reasoning_effort": "xhigh"})", -1},
      {R"({"reasoning_effort": "max"})", -1},
      {R"({"reasoning": {"effort": "low"}})", 1024},
  };
  for (const BudgetCase& c : cases) {
    ASSERT_OK_AND_ASSIGN(const v1::ThinkingOptions options, Read(c.body));
    EXPECT_TRUE(options.has_budget()) << c.body;
    EXPECT_EQ(options.budget(), c.budget) << c.body;
    EXPECT_FALSE(options.has_enable_thinking()) << c.body;
  }
}

struct SwitchCase {
  std::string body;
  bool enable_thinking;
};

TEST(OpenAiThinkingTest, KnowsEveryNameOfTheSwitch) {
  const std::vector<SwitchCase> cases = {
      {R"({"enable_thinking": false})", false},
      {R"({"enable_thinking": true})", true},
      {R"({"chat_template_kwargs": {"enable_thinking": false, "other": 1}})", false},
      {R"({"extra_body": {"enable_thinking": false}})", false},
      {R"({"extra_body": {"chat_template_kwargs": {"enable_thinking": true}}})", true},
      {R"({"reasoning": {"enabled": false}})", false},
      {R"({"thinking": {"type": "enabled"}})", true},
      {R"({"thinking": {"type": "disabled"}})", false},
      {R"({"reasoning_effort": "none"})", false},
      {R"({"reasoning": {"effort": "none"}})", false},
  };
  for (const SwitchCase& c : cases) {
    ASSERT_OK_AND_ASSIGN(const v1::ThinkingOptions options, Read(c.body));
    EXPECT_TRUE(options.has_enable_thinking()) << c.body;
    EXPECT_EQ(options.enable_thinking(), c.enable_thinking) << c.body;
    EXPECT_FALSE(options.has_budget()) << c.body;
  }
}

TEST(OpenAiThinkingTest, TakesSeveralNamesThatAgree) {
  ASSERT_OK_AND_ASSIGN(const v1::ThinkingOptions options, Read(R"({
      "enable_thinking": true, "chat_template_kwargs": {"enable_thinking": true},
      "thinking": {"type": "enabled", "budget_tokens": 1024}, "thinking_budget": 1024,
      "reasoning_effort": "low", "extra_body": {"thinking_token_budget": 1024}})"));
  EXPECT_TRUE(options.enable_thinking());
  EXPECT_EQ(options.budget(), 1024);
}

TEST(OpenAiThinkingTest, LetsTheSwitchWinOverABudget) {
  ASSERT_OK_AND_ASSIGN(const v1::ThinkingOptions options,
                       Read(R"({"enable_thinking": false, "thinking_budget": 100})"));
  EXPECT_FALSE(options.enable_thinking());
  EXPECT_EQ(options.budget(), 100);
}

TEST(OpenAiThinkingTest, ReadsOurOwnFields) {
  ASSERT_OK_AND_ASSIGN(const v1::ThinkingOptions options,
                       Read(R"({"answer_reserve": 64, "early_stop_text": "Enough.</think>"})"));
  EXPECT_EQ(options.answer_reserve(), 64u);
  EXPECT_EQ(options.early_stop_text(), "Enough.</think>");
  ASSERT_OK_AND_ASSIGN(const v1::ThinkingOptions none, Read("{}"));
  EXPECT_EQ(none.ByteSizeLong(), 0u);
}

struct ErrorCase {
  std::string body;
  std::string message;
};

TEST(OpenAiThinkingTest, NamesWhatIsWrong) {
  const std::vector<ErrorCase> cases = {
      {R"({"enable_thinking": "false"})", R"(enable_thinking is "false", want true or false)"},
      {R"({"enable_thinking": 0})", "enable_thinking is 0, want true or false"},
      {R"({"chat_template_kwargs": {"enable_thinking": "no"}})",
       R"(chat_template_kwargs.enable_thinking is "no", want true or false)"},
      {R"({"extra_body": {"chat_template_kwargs": {"enable_thinking": 1}}})",
       "extra_body.chat_template_kwargs.enable_thinking is 1, want true or false"},
      {R"({"chat_template_kwargs": []})", "chat_template_kwargs is an array, want an object"},
      {R"({"thinking_budget": "100"})",
       R"(thinking_budget is "100", want an integer of -1 or more)"},
      {R"({"thinking_budget": -2})", "thinking_budget is -2, want an integer of -1 or more"},
      {R"({"nvext": {"max_thinking_tokens": 1.5}})",
       "nvext.max_thinking_tokens is 1.5, want an integer of -1 or more"},
      {R"({"thinking": {"type": "adaptive"}})",
       R"(thinking.type is "adaptive", want "enabled" or "disabled")"},
      {R"({"thinking": true})", "thinking is true, want an object"},
      {R"({"reasoning_effort": "huge"})",
       R"(reasoning_effort is "huge", want none, minimal, low, medium, high, xhigh or max)"},
      {R"({"answer_reserve": -1})", "answer_reserve is -1, want an integer in 0..4294967295"},
      {R"({"early_stop_text": 1})", "early_stop_text is 1, want a string"},
      {R"({"thinking_budget": 5, "nvext": {"max_thinking_tokens": 6}})",
       "thinking_budget is 5 and nvext.max_thinking_tokens is 6, want one meaning"},
      {R"({"thinking_budget": 5, "reasoning_effort": "high"})",
       R"(thinking_budget is 5 and reasoning_effort is "high" (16384), want one meaning)"},
      {R"({"enable_thinking": true, "chat_template_kwargs": {"enable_thinking": false}})",
       "enable_thinking is true and chat_template_kwargs.enable_thinking is false, want one "
       "meaning"},
      {R"({"enable_thinking": true, "reasoning_effort": "none"})",
       R"(enable_thinking is true and reasoning_effort is "none", want one meaning)"},
      {R"({"thinking_budget": 0, "enable_thinking": true})",
       "enable_thinking is true and thinking_budget is 0, want one meaning"},
      {R"({"answer_reserve": 1, "extra_body": {"answer_reserve": 2}})",
       "answer_reserve is 1 and extra_body.answer_reserve is 2, want one meaning"},
      {R"({"early_stop_text": "a", "extra_body": {"early_stop_text": "b"}})",
       R"(early_stop_text is "a" and extra_body.early_stop_text is "b", want one meaning)"},
  };
  for (const ErrorCase& c : cases) {
    EXPECT_THAT(Read(c.body), StatusIs(absl::StatusCode::kInvalidArgument, c.message)) << c.body;
  }
}

}  // namespace
}  // namespace conclave
