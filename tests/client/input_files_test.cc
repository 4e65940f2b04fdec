#include "client/input_files.h"

#include <gtest/gtest.h>

#include <fstream>

#include "common/limits.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(ParseMessagesTest, ReadsEveryField) {
  ASSERT_OK_AND_ASSIGN(const std::vector<v1::ChatMessage> messages, ParseMessages(R"([
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
     "name": "unknown keys are ignored"},
    {"role": "assistant", "content": null, "reasoning_content": "", "tool_calls": [
      {"id": "call_1", "type": "function",
       "function": {"name": "add", "arguments": "{\"y\": 1.50, \"x\": 1e3}"}},
      {"function": {"name": "now", "arguments": {"big": 123456789012345678901}}},
      {"function": {"name": "none"}}]},
    {"role": "tool", "content": "4", "tool_call_id": "call_1"}])"));
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_EQ(messages[0].role(), "system");
  EXPECT_EQ(messages[0].content(), "Be brief.");
  EXPECT_FALSE(messages[0].has_reasoning_content());
  EXPECT_EQ(messages[1].content(), "a\nb");
  EXPECT_EQ(messages[2].content(), "");
  EXPECT_TRUE(messages[2].has_reasoning_content());
  ASSERT_EQ(messages[2].tool_calls_size(), 3);
  EXPECT_EQ(messages[2].tool_calls(0).id(), "call_1");
  EXPECT_EQ(messages[2].tool_calls(0).name(), "add");
  // The order of keys and how numbers are written reach the prompt, so they are kept.
  EXPECT_EQ(messages[2].tool_calls(0).arguments(), R"({"y": 1.50, "x": 1e3})");
  EXPECT_EQ(messages[2].tool_calls(1).arguments(), R"({"big": 123456789012345678901})");
  EXPECT_EQ(messages[2].tool_calls(2).arguments(), "{}");
  EXPECT_EQ(messages[3].tool_call_id(), "call_1");
}

TEST(ParseMessagesTest, NamesWhatIsWrong) {
  for (const auto& [json, message] : std::vector<std::pair<std::string, std::string>>{
           {"", "messages: "},
           {"{}", "messages is an object, want a JSON list"},
           {"[5]", "messages[0] is a number, want an object"},
           {"[{}]", "messages[0].role is missing, want system, user, assistant or tool"},
           {R"([{"role": 4}])", "messages[0].role is a number"},
           {R"([{"role": "robot"}])", "messages[0].role is \"robot\""},
           {R"([{"role": "user", "content": 3}])", "messages[0].content"},
           {R"([{"role": "user", "content": [{"type": "image_url"}]}])", "messages[0].content"},
           {R"([{"role": "user"}, {"role": "tool", "tool_call_id": 3}])",
            "messages[1].tool_call_id is a number, want a string"},
           {R"([{"role": "assistant", "reasoning_content": []}])",
            "messages[0].reasoning_content is a"},
           {R"([{"role": "assistant", "tool_calls": {}}])", "messages[0].tool_calls is an object"},
           {R"([{"role": "assistant", "tool_calls": [1]}])", "messages[0].tool_calls[0] is a"},
           {R"([{"role": "assistant", "tool_calls": [{}]}])",
            "messages[0].tool_calls[0].function is missing"},
           {R"([{"role": "assistant", "tool_calls": [{"function": {}}]}])",
            "messages[0].tool_calls[0].function.name is missing"},
           {R"([{"role": "assistant", "tool_calls": [{"function":
              {"name": "f", "arguments": "{"}}]}])",
            "messages[0].tool_calls[0].function.arguments: "}}) {
    EXPECT_THAT(ParseMessages(json),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)))
        << json;
  }
}

TEST(ParseToolsTest, KeepsOrderAndNumbers) {
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> tools, ParseTools(R"([
    {"type": "function", "function": {"name": "f", "b": 1.0, "a": 1e16}}])"));
  EXPECT_THAT(
      tools,
      ElementsAre(R"({"type": "function", "function": {"name": "f", "b": 1.0, "a": 1e16}})"));
  EXPECT_THAT(*ParseTools("[]"), IsEmpty());
}

TEST(ParseToolsTest, NamesWhatIsWrong) {
  for (const auto& [json, message] : std::vector<std::pair<std::string, std::string>>{
           {"nonsense", "tools: "},
           {"null", "tools is null"},
           {"[[]]", "tools[0] is a"},
           {R"([{"name": "f"}])", "tools[0].function is missing"},
           {R"([{"function": {"name": 3}}])", "tools[0].function.name is a number"}}) {
    EXPECT_THAT(ParseTools(json), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)))
        << json;
  }
}

TEST(ParseIdsTest, ReadsListsAndRefusesOtherWords) {
  EXPECT_THAT(*ParseIds(" 1,2, 3\n4294967295 "), ElementsAre(1u, 2u, 3u, 4294967295u));
  EXPECT_THAT(*ParseIds(""), IsEmpty());
  for (const char* text : {"1 two", "-1", "4294967296", "1.5"}) {
    EXPECT_THAT(ParseIds(text), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
}

TEST(ReadInputTest, ReadsFilesWithinTheLimit) {
  const TempDir dir;
  const std::string path = dir.Write("input", "some\ntext");
  EXPECT_EQ(*ReadInput(path), "some\ntext");
  EXPECT_THAT(ReadInput(path + ".missing"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr(path + ".missing")));
  dir.Write("input", std::string(limits::kMaxPromptBytes + 1, 'x'));
  EXPECT_THAT(ReadInput(path), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(path)));
}

}  // namespace
}  // namespace conclave
