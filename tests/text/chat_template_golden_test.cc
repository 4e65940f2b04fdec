// The chat templates against what jinja2 prints for them.
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"
#include "tests/text/text_test_data.h"
#include "text/chat_template.h"

namespace conclave {
namespace {

std::vector<std::string> ReadConversations() { return ReadDataLines("golden/chat_dev.jsonl"); }

std::string NameOf(const JsonValue& record) { return StringAt(record, "name"); }

TEST(ChatTemplateGoldenTest, RendersWhatAServerSends) {
  int num_rendered = 0, num_errors = 0;
  for (const std::string& line : ReadConversations()) {
    ASSERT_OK_AND_ASSIGN(const JsonValue record, ParseJson(line));
    const absl::StatusOr<ChatPrompt> prompt = ParseChatPrompt(line);
    const JsonValue& wanted = *record.Find("rendered_server");
    if (wanted.is_null()) {
      EXPECT_THAT(prompt, StatusIs(absl::StatusCode::kInvalidArgument)) << NameOf(record);
      ++num_errors;
      continue;
    }
    ASSERT_OK(prompt) << NameOf(record);
    ASSERT_OK_AND_ASSIGN(const std::string text, RenderChat(TemplateKind::kQwen3, *prompt));
    EXPECT_EQ(text, wanted.string_value()) << NameOf(record);
    ++num_rendered;
  }
  EXPECT_EQ(num_rendered, 82);
  EXPECT_EQ(num_errors, 1);
}

TEST(ChatTemplateGoldenTest, RendersWhatTheBareTemplatePrints) {
  int num_rendered = 0;
  for (const std::string& line : ReadConversations()) {
    ASSERT_OK_AND_ASSIGN(const JsonValue record, ParseJson(line));
    const JsonValue& wanted = *record.Find("rendered");
    if (wanted.is_null()) continue;  // it raises; a server does not
    ASSERT_OK_AND_ASSIGN(const ChatPrompt prompt,
                         ParseChatPrompt(line, ArgumentStrings::kVerbatim));
    ASSERT_OK_AND_ASSIGN(const std::string text, RenderChat(TemplateKind::kQwen3, prompt));
    EXPECT_EQ(text, wanted.string_value()) << NameOf(record);
    ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> ids, Qwen3Tokenizer().Encode(text));
    EXPECT_EQ(ids, IdsAt(record)) << NameOf(record);
    ++num_rendered;
  }
  EXPECT_EQ(num_rendered, 78);
}

TEST(ChatTemplateGoldenTest, RendersTheInstructTemplateOfJuly2025) {
  int num_rendered = 0;
  for (const std::string& line : ReadConversations()) {
    ASSERT_OK_AND_ASSIGN(const JsonValue record, ParseJson(line));
    const JsonValue& wanted = *record.Find("rendered_2507");
    // The bare template prints nothing for a list of parts; a server must not lose the text.
    if (wanted.is_null() || NameOf(record) == "parts/mixed_users") continue;
    ASSERT_OK_AND_ASSIGN(const ChatPrompt prompt,
                         ParseChatPrompt(line, ArgumentStrings::kVerbatim));
    ASSERT_OK_AND_ASSIGN(const std::string text, RenderChat(TemplateKind::kInstruct2507, prompt));
    EXPECT_EQ(text, wanted.string_value()) << NameOf(record);
    ++num_rendered;
  }
  EXPECT_EQ(num_rendered, 80);
}

// The Thinking models of July 2025 differ from April's only in how the prompt ends.
TEST(ChatTemplateGoldenTest, TheThinkingTemplateOpensTheBlockItself) {
  for (const std::string& line : ReadConversations()) {
    absl::StatusOr<ChatPrompt> prompt = ParseChatPrompt(line);
    if (!prompt.ok()) continue;
    ASSERT_OK_AND_ASSIGN(const std::string text, RenderChat(TemplateKind::kThinking2507, *prompt));
    prompt->enable_thinking.reset();
    ASSERT_OK_AND_ASSIGN(const std::string april, RenderChat(TemplateKind::kQwen3, *prompt));
    EXPECT_EQ(text, april + (prompt->add_generation_prompt ? "<think>\n" : ""));
  }
}

TEST(ChatTemplateGoldenTest, ToJsonPrintsAsPython) {
  const std::vector<JsonValue> records = ReadDataRecords("golden/tojson_format.jsonl");
  EXPECT_EQ(records.size(), 85u);
  for (const JsonValue& record : records) {
    ASSERT_OK_AND_ASSIGN(const JsonValue value, ParseJson(StringAt(record, "json_in")));
    EXPECT_EQ(ToJson(value), StringAt(record, "tojson_out")) << StringAt(record, "json_in");
  }
}

}  // namespace
}  // namespace conclave
