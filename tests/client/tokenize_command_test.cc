// `conclave tokenize` and `conclave render`, line by line, against the references' vectors.
#include "client/tokenize_command.h"

#include <gtest/gtest.h>

#include <sstream>

#include "client/render_command.h"
#include "tests/support/status_matchers.h"
#include "tests/text/text_test_data.h"

namespace conclave {
namespace {

using testing::HasSubstr;

std::string Joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

std::vector<JsonValue> Answers(const std::ostringstream& out) {
  std::vector<JsonValue> answers;
  std::istringstream lines(out.str());
  for (std::string line; std::getline(lines, line);) {
    absl::StatusOr<JsonValue> answer = ParseJson(line);
    CHECK(answer.ok()) << line;
    answers.push_back(*std::move(answer));
  }
  return answers;
}

TEST(TokenizeCommandTest, EncodesAndDecodesFiles) {
  for (const bool plain : {false, true}) {
    const std::string file = plain ? "golden/plain_dev.jsonl" : "golden/golden_dev.jsonl";
    std::istringstream in(Joined(ReadDataLines(file)));
    std::ostringstream out;
    ASSERT_OK(RunTokenize({.model_dir = TextDataPath("qwen3"), .plain = plain}, in, out));
    const std::vector<JsonValue> records = ReadDataRecords(file);
    const std::vector<JsonValue> answers = Answers(out);
    ASSERT_EQ(answers.size(), records.size());
    for (size_t i = 0; i < records.size(); ++i) EXPECT_EQ(IdsAt(answers[i]), IdsAt(records[i]));
  }
  std::istringstream in(Joined(ReadDataLines("golden/detok_dev.jsonl")));
  std::ostringstream out;
  ASSERT_OK(RunTokenize({.model_dir = TextDataPath("qwen3"), .decode = true}, in, out));
  const std::vector<JsonValue> records = ReadDataRecords("golden/detok_dev.jsonl");
  const std::vector<JsonValue> answers = Answers(out);
  ASSERT_EQ(answers.size(), records.size());
  for (size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(StringAt(answers[i], "text"), StringAt(records[i], "decoded"));
    EXPECT_EQ(ToJson(*answers[i].Find("pieces")), ToJson(*records[i].Find("pieces")));
    EXPECT_EQ(StringAt(answers[i], "flush"), StringAt(records[i], "flush"));
  }
}

TEST(TokenizeCommandTest, AnswersTheOtherLinesOfAFileWithBadOnes) {
  std::istringstream in("{\"text\":\"Hello\"}\n\nnot json\n{\"text\":5}\n{\"text\":\" world\"}");
  std::ostringstream out;
  EXPECT_THAT(RunTokenize({.model_dir = TextDataPath("qwen3")}, in, out),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2 of 5 lines")));
  const std::vector<JsonValue> answers = Answers(out);
  ASSERT_EQ(answers.size(), 4u) << out.str();
  EXPECT_EQ(IdsAt(answers[0]), std::vector<uint32_t>{9707});
  EXPECT_THAT(StringAt(answers[1], "error"), HasSubstr("line 3: bad JSON at byte 0"));
  EXPECT_THAT(StringAt(answers[2], "error"), HasSubstr("line 4: text is"));
  EXPECT_EQ(IdsAt(answers[3]), std::vector<uint32_t>{1879});
}

TEST(TokenizeCommandTest, RefusesIdsThatAreNone) {
  for (const std::string ids : {"[1,-1]", "[1,1.5]", "[1,\"2\"]", "[1,4294967296]", "7"}) {
    std::istringstream in("{\"ids\":" + ids + "}");
    std::ostringstream out;
    EXPECT_THAT(RunTokenize({.model_dir = TextDataPath("qwen3"), .decode = true}, in, out),
                StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(out.str(), HasSubstr("\"error\": \"line 1: ids")) << ids;
  }
}

TEST(TokenizeCommandTest, NeedsAModel) {
  std::istringstream in;
  std::ostringstream out;
  EXPECT_THAT(RunTokenize({.model_dir = "/nowhere"}, in, out),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nowhere/tokenizer.json")));
  EXPECT_THAT(RunRender({.model_dir = "/nowhere", .chat_template = {}}, in, out),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST(RenderCommandTest, RendersConversations) {
  std::istringstream in(Joined(ReadDataLines("golden/chat_dev.jsonl")));
  std::ostringstream out;
  EXPECT_THAT(RunRender({.model_dir = TextDataPath("qwen3"), .chat_template = {}}, in, out),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1 of 83 lines")));
  const std::vector<JsonValue> records = ReadDataRecords("golden/chat_dev.jsonl");
  const std::vector<JsonValue> answers = Answers(out);
  ASSERT_EQ(answers.size(), records.size());
  for (size_t i = 0; i < records.size(); ++i) {
    const JsonValue& wanted = *records[i].Find("rendered_server");
    if (wanted.is_null()) {
      EXPECT_THAT(StringAt(answers[i], "error"), HasSubstr("function.arguments: bad JSON"));
      continue;
    }
    EXPECT_EQ(StringAt(answers[i], "text"), wanted.string_value());
    if (ToJson(*records[i].Find("rendered")) == ToJson(wanted)) {
      EXPECT_EQ(IdsAt(answers[i]), IdsAt(records[i]));
    }
  }
}

TEST(RenderCommandTest, TheTemplateCanBeChosen) {
  std::istringstream in("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
  std::ostringstream out;
  ASSERT_OK(RunRender(
      {.model_dir = TextDataPath("qwen3"), .chat_template = TemplateKind::kThinking2507}, in, out));
  EXPECT_THAT(out.str(), HasSubstr("<|im_start|>assistant\\n<think>\\n\""));
}

}  // namespace
}  // namespace conclave
