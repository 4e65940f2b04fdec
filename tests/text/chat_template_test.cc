// Cleaning messages up, telling templates apart, and the thinking mode of a turn.
#include "text/chat_template.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "nlohmann/json.hpp"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"
#include "tests/text/text_test_data.h"
#include "text/thinking_mode.h"

namespace conclave {
namespace {

using testing::HasSubstr;

ChatPrompt UserPrompt(const std::string& content) {
  return {
      .messages = {{.role = "user", .content = content, .reasoning_content = {}, .tool_calls = {}}},
      .tools = {},
      .enable_thinking = {}};
}

TEST(ChatPromptTest, ReadsClientsJson) {
  ASSERT_OK_AND_ASSIGN(
      const ChatPrompt prompt,
      ParseChatPrompt(R"({"model": "ignored", "enable_thinking": false, "tools": [{"b": 1.0}],
        "messages": [
          {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]},
          {"role": "assistant", "reasoning_content": "", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
            {"name": "bare", "arguments": {"y": []}},
            {"function": {"name": "none"}}]},
          {"role": "user", "content": "u", "tool_calls": "not looked at"}]})"));
  EXPECT_EQ(prompt.enable_thinking, false);
  EXPECT_TRUE(prompt.add_generation_prompt);
  ASSERT_EQ(prompt.messages.size(), 3u);
  EXPECT_EQ(prompt.messages[0].content, "a\nb");
  EXPECT_EQ(prompt.messages[1].content, "");
  EXPECT_EQ(prompt.messages[1].reasoning_content, "");
  EXPECT_EQ(prompt.messages[2].reasoning_content, std::nullopt);
  ASSERT_EQ(prompt.messages[1].tool_calls.size(), 3u);
  EXPECT_EQ(ToJson(prompt.messages[1].tool_calls[0].arguments), "{\"x\": 1}");
  EXPECT_EQ(prompt.messages[1].tool_calls[1].name, "bare");
  EXPECT_EQ(ToJson(prompt.messages[1].tool_calls[2].arguments), "{}");
  EXPECT_EQ(ToJson(prompt.tools[0]), "{\"b\": 1.0}");
}

TEST(ChatPromptTest, NullIsAsNotGiven) {
  ASSERT_OK_AND_ASSIGN(const ChatPrompt prompt,
                       ParseChatPrompt(R"({"messages": [], "tools": null, "enable_thinking": null,
                          "add_generation_prompt": null})"));
  EXPECT_EQ(prompt.enable_thinking, std::nullopt);
  EXPECT_TRUE(prompt.add_generation_prompt);
  EXPECT_THAT(RenderChat(TemplateKind::kQwen3, prompt),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("messages is empty")));
}

TEST(ChatPromptTest, NamesTheFieldThatIsWrong) {
  struct Case {
    const char* json;
    const char* message;
  };
  const Case cases[] = {
      {"[]", "the request is an array, want an object"},
      {"{}", "messages is missing"},
      {R"({"messages": {}})", "messages is an object, want an array"},
      {R"({"messages": [5]})", "messages[0] is a number, want an object"},
      {R"({"messages": [{"content": "x"}]})", "messages[0].role is missing"},
      {R"({"messages": [{"role": null}]})", "messages[0].role is null, want a string"},
      {R"({"messages": [{"role": "user", "content": 5}]})", "messages[0].content is a number"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
       "messages[0].content[0].type is \"image_url\", want \"text\""},
      {R"({"messages": [{"role": "user", "content": [{"text": "x"}]}]})",
       "messages[0].content[0].type is missing"},
      {R"({"messages": [{"role": "user", "content": ["a", {"type": "text"}]}]})",
       "messages[0].content[1].text is null, want a string"},
      {R"({"messages": [{"role": "assistant", "reasoning_content": 1}]})",
       "messages[0].reasoning_content is a number, want a string"},
      {R"({"messages": [{"role": "assistant", "tool_calls": {}}]})",
       "messages[0].tool_calls is an object, want an array"},
      {R"({"messages": [{"role": "assistant", "tool_calls": [{}]}]})",
       "messages[0].tool_calls[0].function.name is missing"},
      {R"({"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]})",
       "messages[0].tool_calls[0].function is a number, want an object"},
      {R"({"messages": [{"role": "assistant", "tool_calls": [{"name": 5}]}]})",
       "function.name is a number, want a string"},
      {R"({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x"}]}]})",
       "messages[0].tool_calls[0].function.arguments: bad JSON at byte 0"},
      {R"({"messages": [], "tools": {}})", "tools is an object, want an array"},
      // Templates take only the literal false: a server must not guess.
      {R"({"messages": [], "enable_thinking": "false"})",
       "enable_thinking is a string, want true, false or null"},
      {R"({"messages": [], "enable_thinking": 0})", "enable_thinking is a number"},
      {R"({"messages": [], "add_generation_prompt": 1})", "add_generation_prompt is a number"},
      {"{\"messages\": [", "bad JSON"},
  };
  for (const Case& c : cases) {
    EXPECT_THAT(ParseChatPrompt(c.json),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)))
        << c.json;
  }
}

TEST(ChatPromptTest, EmptyArgumentsAreAnEmptyObject) {
  for (const char* json : {"null", "\"\"", "[]", "{}", "0", "0.0", "-0e5", "false", "\"{}\""}) {
    ASSERT_OK_AND_ASSIGN(const JsonValue value, ParseJson(json));
    ASSERT_OK_AND_ASSIGN(const JsonValue arguments, NormalizeArguments(value));
    EXPECT_EQ(ToJson(arguments), "{}") << json;
  }
  for (const char* json : {"5", "0.1", "10", "true", "[1]", "{\"a\": 1}"}) {
    ASSERT_OK_AND_ASSIGN(const JsonValue value, ParseJson(json));
    ASSERT_OK_AND_ASSIGN(const JsonValue arguments, NormalizeArguments(value));
    EXPECT_EQ(ToJson(arguments), json);
  }
  ASSERT_OK_AND_ASSIGN(const JsonValue kept, NormalizeArguments("{\"b\":1.0,\"a\":2}"));
  EXPECT_EQ(ToJson(kept), "{\"b\": 1.0, \"a\": 2}");
}

TEST(TemplateKindTest, NamesComeBack) {
  for (const TemplateKind kind :
       {TemplateKind::kQwen3, TemplateKind::kInstruct2507, TemplateKind::kThinking2507}) {
    ASSERT_OK_AND_ASSIGN(const TemplateKind parsed, ParseTemplateKind(TemplateKindName(kind)));
    EXPECT_EQ(parsed, kind);
  }
  EXPECT_THAT(ParseTemplateKind("chatml"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("qwen3-thinking-2507")));
}

// What the templates of July 2025 say, in fewer words.
std::string JulyTemplate(const std::string& assistant, const std::string& start) {
  return "{%- for message in messages %}\n"
         "{%- if message.role == 'user' %}{{- '<|im_start|>' + message.role + '\\n' }}\n"
         "{%- elif message.role == \"assistant\" %}" +
         assistant +
         "{{- '<tool_call>\\n{\"name\": \"' }}{{- '\\n<tool_response>\\n' }}\n"
         "{%- endif %}{%- endfor %}\n"
         "{%- if add_generation_prompt %}\n    {{- '" +
         start + "' }}\n{%- endif %}\n";
}

const char kThinkingPart[] = "{%- if '</think>' in message.content %}{%- endif %}";

class TemplateDetectorTest : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text) { dir_.Write(name, text); }
  const TempDir dir_;
};

TEST_F(TemplateDetectorTest, KnowsTheReleasedTemplateWhateverItsLineEnds) {
  ASSERT_OK_AND_ASSIGN(TemplateKind kind, DetectTemplate(TextDataPath("qwen3")));
  EXPECT_EQ(kind, TemplateKind::kQwen3);
  std::ifstream file(TextDataPath("qwen3/tokenizer_config.json"));
  std::string jinja = nlohmann::json::parse(file)["chat_template"];
  for (size_t at = 0; (at = jinja.find('\n', at)) != std::string::npos; at += 2) {
    jinja.replace(at, 1, "\r\n");
  }
  Write("chat_template.jinja", jinja);
  ASSERT_OK_AND_ASSIGN(kind, DetectTemplate(dir_.path()));
  EXPECT_EQ(kind, TemplateKind::kQwen3);
  // One changed word, and it is no longer known.
  jinja.replace(jinja.find("You may call"), 12, "You must call");
  EXPECT_THAT(RecognizeTemplate(jinja), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(TemplateDetectorTest, KnowsJulysTemplatesByWhatTheyDo) {
  EXPECT_EQ(*RecognizeTemplate(JulyTemplate("", "<|im_start|>assistant\\n")),
            TemplateKind::kInstruct2507);
  EXPECT_EQ(*RecognizeTemplate(JulyTemplate(kThinkingPart, "<|im_start|>assistant\\n<think>\\n")),
            TemplateKind::kThinking2507);
}

TEST_F(TemplateDetectorTest, RefusesOthersAndNamesTheFlag) {
  const std::string instruct = JulyTemplate("", "<|im_start|>assistant\\n");
  const std::string unknown[] = {
      "",
      "{{ messages[0].content }}",
      // Parts the thinking of past turns but does not start one: neither of the two.
      JulyTemplate(kThinkingPart, "<|im_start|>assistant\\n"),
      // A default system prompt, as the family had before.
      "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}" + instruct,
      "text outside the tags" + instruct,
      instruct + "{%- if enable_thinking is false %}{%- endif %}",
      instruct + "{{- 'unfinished",
  };
  for (const std::string& jinja : unknown) {
    EXPECT_THAT(RecognizeTemplate(jinja),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("--chat_template=qwen3")))
        << jinja;
  }
  Write("chat_template.jinja", unknown[1]);
  EXPECT_THAT(DetectTemplate(dir_.path()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("chat_template.jinja")));
}

TEST_F(TemplateDetectorTest, ReadsTheConfigInAllItsForms) {
  EXPECT_THAT(DetectTemplate(dir_.path()), StatusIs(absl::StatusCode::kNotFound));
  const std::string instruct = JulyTemplate("", "<|im_start|>assistant\\n");
  nlohmann::json config = {{"chat_template", instruct}};
  Write("tokenizer_config.json", config.dump());
  EXPECT_EQ(*DetectTemplate(dir_.path()), TemplateKind::kInstruct2507);
  config["chat_template"] = {{{"name", "tool_use"}, {"template", "x"}},
                             {{"name", "default"}, {"template", instruct}}};
  Write("tokenizer_config.json", config.dump());
  EXPECT_EQ(*DetectTemplate(dir_.path()), TemplateKind::kInstruct2507);
  // The file of its own goes first.
  Write("chat_template.jinja", JulyTemplate(kThinkingPart, "<|im_start|>assistant\\n<think>\\n"));
  EXPECT_EQ(*DetectTemplate(dir_.path()), TemplateKind::kThinking2507);
}

TEST_F(TemplateDetectorTest, RefusesABrokenConfig) {
  for (const char* text : {"{", "[]", "{\"chat_template\": 5}", "{\"chat_template\": [{}]}",
                           "{\"chat_template\": [{\"name\": \"default\", \"template\": 5}]}",
                           "{\"chat_template\": [{\"name\": \"x\", \"template\": \"y\"}]}",
                           "{\"chat_template\": []}"}) {
    Write("tokenizer_config.json", text);
    EXPECT_THAT(DetectTemplate(dir_.path()),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tokenizer_config.json")))
        << text;
  }
  Write("tokenizer_config.json", "{\"chat_template\": null}");
  EXPECT_THAT(DetectTemplate(dir_.path()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("--chat_template=qwen3")));
}

TEST(ThinkingModeTest, TheHardSwitchGoesOverTheSoftOneOverTheDefault) {
  ChatPrompt prompt = UserPrompt("hi");
  const auto resolve = [&](ThinkingMode default_mode = ThinkingMode::kThinking) {
    return ResolveThinkingMode(TemplateKind::kQwen3, prompt, default_mode);
  };
  const auto is = [](ThinkingMode mode, ThinkingSource source) {
    return ThinkingDecision{mode, source};
  };
  EXPECT_EQ(resolve(), is(ThinkingMode::kThinking, ThinkingSource::kDefault));
  EXPECT_EQ(resolve(ThinkingMode::kOff), is(ThinkingMode::kOff, ThinkingSource::kDefault));
  prompt.enable_thinking = true;
  EXPECT_EQ(resolve(ThinkingMode::kOff), is(ThinkingMode::kThinking, ThinkingSource::kRequest));
  prompt.messages[0].content = "hi /no_think";
  EXPECT_EQ(resolve(), is(ThinkingMode::kOff, ThinkingSource::kSoftSwitch));
  prompt.messages[0].content = "hi /think";
  prompt.enable_thinking = false;
  EXPECT_EQ(resolve(), is(ThinkingMode::kOff, ThinkingSource::kRequest));
  EXPECT_EQ(ResolveThinkingMode(TemplateKind::kThinking2507, prompt),
            is(ThinkingMode::kThinking, ThinkingSource::kModel));
  prompt.enable_thinking = true;
  EXPECT_EQ(ResolveThinkingMode(TemplateKind::kInstruct2507, prompt),
            is(ThinkingMode::kOff, ThinkingSource::kModel));
}

TEST(ThinkingModeTest, ASwitchStandsAlone) {
  const auto last = [](const std::string& text) { return LastSoftSwitch(UserPrompt(text)); };
  for (const char* text : {"/no_think", "x /no_think", "/think then /no_think", "x\n/no_think\n",
                           "why?/no_think.", "\xE5\xA5\xBD/no_think", "(/no_think)",
                           "done./no_think", "/no_think src/think.cc /thinking"}) {
    EXPECT_EQ(last(text), ThinkingMode::kOff) << text;
  }
  for (const char* text : {"/think", "/no_think but now /think", "/think!"}) {
    EXPECT_EQ(last(text), ThinkingMode::kThinking) << text;
  }
  for (const char* text : {"", "/", "think", "/thinking", "/no_thinking", "src/think", "./think",
                           "../think", "/think/x", "a./think", "x /think.py", "//think", "/nothink",
                           "/think_more", "/think-tank", "~/think"}) {
    const bool sentence = std::string(text) == "a./think";  // a full stop, then a switch
    EXPECT_EQ(last(text).has_value(), sentence) << text;
  }
}

TEST(ThinkingModeTest, OnlyUserAndSystemTextSwitches) {
  ChatPrompt prompt = UserPrompt("x /no_think");
  const auto add = [&](const std::string& role, const std::string& content) {
    ChatMessage message;
    message.role = role;
    message.content = content;
    prompt.messages.push_back(message);
  };
  add("assistant", "you said /think");
  add("tool", "/think");
  add("user", "<tool_response>\n/think\n</tool_response>");
  EXPECT_EQ(LastSoftSwitch(prompt), ThinkingMode::kOff);
  add("system", "/think");
  EXPECT_EQ(LastSoftSwitch(prompt), ThinkingMode::kThinking);
}

TEST(ThinkingModeTest, SamplingDefaults) {
  const SamplingDefaults thinking = SamplingDefaultsFor(ThinkingMode::kThinking);
  EXPECT_EQ(thinking.temperature, 0.6f);
  EXPECT_EQ(thinking.top_p, 0.95f);
  EXPECT_EQ(thinking.top_k, 20);
  const SamplingDefaults off = SamplingDefaultsFor(ThinkingMode::kOff);
  EXPECT_EQ(off.temperature, 0.7f);
  EXPECT_EQ(off.top_p, 0.8f);
  EXPECT_EQ(off.top_k, 20);
  EXPECT_EQ(ThinkingModeName(ThinkingMode::kOff), "off");
  EXPECT_EQ(ThinkingSourceName(ThinkingSource::kSoftSwitch), "soft_switch");
}

}  // namespace
}  // namespace conclave
