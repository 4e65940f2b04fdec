// The parsers of an answer's stream: thinking, tool calls, stop strings. Each must give the same
// result however the stream is cut.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/text/text_test_data.h"
#include "text/reasoning_splitter.h"
#include "text/stop_strings.h"
#include "text/stream_decoder.h"
#include "text/tool_call_parser.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint32_t kThinkId = 151667;
constexpr uint32_t kEndThinkId = 151668;

struct Parted {
  std::string thinking;
  std::string answer;
  friend bool operator==(const Parted&, const Parted&) = default;
};

void PrintTo(const Parted& parted, std::ostream* out) {
  *out << "thinking <" << parted.thinking << "> answer <" << parted.answer << ">";
}

Parted Part(const std::vector<uint32_t>& ids, bool start_inside = false) {
  const Vocabulary& vocabulary = Qwen3Tokenizer().vocabulary();
  StreamDecoder decoder(&vocabulary);
  ReasoningSplitter splitter(vocabulary, start_inside);
  Parted parted;
  const auto add = [&parted](const SplitText& text) {
    EXPECT_TRUE(text.thinking.empty() || text.answer.empty());
    EXPECT_FALSE(text.thinking_began && text.thinking_ended);
    parted.thinking += text.thinking;
    parted.answer += text.answer;
  };
  for (const uint32_t id : ids) {
    const bool before = splitter.in_thinking();
    const SplitText text = splitter.Push(id, decoder.Push(id));
    EXPECT_EQ(text.thinking_began, !before && splitter.in_thinking());
    EXPECT_EQ(text.thinking_ended, before && !splitter.in_thinking());
    add(text);
  }
  add(splitter.Flush(decoder.Flush()));
  return parted;
}

Parted PartText(const std::string& text, bool start_inside = false) {
  return Part(*Qwen3Tokenizer().Encode(text), start_inside);
}

TEST(ReasoningSplitterTest, PartsThinkingFromAnswer) {
  EXPECT_EQ(PartText("<think>\nreason\n</think>\n\nanswer"), (Parted{"reason", "answer"}));
  EXPECT_EQ(PartText("<think>reason</think>answer\n"), (Parted{"reason", "answer\n"}));
  EXPECT_EQ(PartText("<think>\n\n</think>\n\nanswer"), (Parted{"", "answer"}));
  EXPECT_EQ(PartText("<think>\n\na\n\nb\n\n\n</think>\n\n\nx\n\ny"), (Parted{"a\n\nb", "x\n\ny"}));
  EXPECT_EQ(PartText("\n\nno thinking\n"), (Parted{"", "\n\nno thinking\n"}));
  EXPECT_EQ(PartText("<think>\nonly\n"), (Parted{"only", ""}));
  EXPECT_EQ(PartText("<think>\n \n</think>\n\n x"), (Parted{" ", " x"})) << "only newlines go";
}

TEST(ReasoningSplitterTest, CanStartInside) {
  EXPECT_EQ(PartText("reason\n</think>\n\nanswer", true), (Parted{"reason", "answer"}));
  EXPECT_EQ(PartText("\n<think>reason</think>", true), (Parted{"reason", ""}));
}

TEST(ReasoningSplitterTest, ThinkingCanReopen) {
  EXPECT_EQ(PartText("<think>\na\n</think>\n\nx\n<think>\nb\n</think>\n\ny"),
            (Parted{"a\nb", "x\n\n\ny"}));
  EXPECT_EQ(PartText("<think>\n\n</think>\n\n<think>\nb\n</think>\n\ny"), (Parted{"b", "y"}));
}

TEST(ReasoningSplitterTest, DropsMarkersThatChangeNothing) {
  EXPECT_EQ(PartText("<think>a<think>b</think>c</think>d"), (Parted{"ab", "cd"}));
}

TEST(ReasoningSplitterTest, LookAlikesAreText) {
  ASSERT_EQ(Qwen3Tokenizer().Decode({13708, 766, 29}, false), "<think>");
  EXPECT_EQ(Part(std::vector<uint32_t>{13708, 766, 29, 9707}), (Parted{"", "<think>Hello"}));
}

TEST(ReasoningSplitterTest, ACharacterCutOffByAMarkerStaysOnItsSide) {
  const uint32_t first_byte_of_two = 127;  // 0xC3
  ASSERT_EQ(Qwen3Tokenizer().vocabulary().Bytes(first_byte_of_two), "\xC3");
  EXPECT_EQ(Part({kThinkId, first_byte_of_two, kEndThinkId, 9707}),
            (Parted{"\xEF\xBF\xBD", "Hello"}));
  EXPECT_EQ(Part({first_byte_of_two, kThinkId, 9707}), (Parted{"Hello", "\xEF\xBF\xBD"}));
  EXPECT_EQ(Part({kThinkId, 9707, first_byte_of_two}), (Parted{"Hello\xEF\xBF\xBD", ""}));
}

// Every way to cut the texts between the markers into tokens gives what the bytes' tokens give.
TEST(ReasoningSplitterTest, DoesNotDependOnTheTokens) {
  const Tokenizer& tokenizer = Qwen3Tokenizer();
  std::vector<uint32_t> byte_ids(256);
  for (uint32_t id = 0; id < 256; ++id) {
    byte_ids[static_cast<uint8_t>(tokenizer.vocabulary().Bytes(id)[0])] = id;
  }
  std::mt19937 random(11);
  const std::string alphabet = "a b\n\n\n\xE4\xB8\xAD\n";
  for (int round = 0; round < 2000; ++round) {
    std::vector<uint32_t> byte_wise, token_wise;
    for (size_t i = random() % 6; i > 0; --i) {
      std::string text;
      for (size_t k = random() % 9; k > 0; --k) {
        const size_t pick = random() % 8;
        text += pick == 7 ? std::string("\xE4\xB8\xAD") : alphabet.substr(pick % 6, 1);
      }
      for (const char c : text) byte_wise.push_back(byte_ids[static_cast<uint8_t>(c)]);
      for (const std::string& piece : RandomChunks(text, 5, &random)) {
        // Cutting a character makes the piece invalid: then its bytes stand for themselves.
        const auto ids = tokenizer.Encode(piece);
        if (ids.ok()) {
          token_wise.insert(token_wise.end(), ids->begin(), ids->end());
        } else {
          for (const char c : piece) token_wise.push_back(byte_ids[static_cast<uint8_t>(c)]);
        }
      }
      const uint32_t marker = random() % 2 == 0 ? kThinkId : kEndThinkId;
      byte_wise.push_back(marker);
      token_wise.push_back(marker);
    }
    const bool inside = random() % 2 == 0;
    ASSERT_EQ(Part(byte_wise, inside), Part(token_wise, inside));
  }
}

// What came out of a parser: text, and calls as "[index name arguments]", in order.
class CallLog {
 public:
  void Add(const std::vector<ToolCallEvent>& events) {
    for (const ToolCallEvent& event : events) {
      if (event.kind == ToolCallEvent::Kind::kContent) {
        EXPECT_FALSE(event.content.empty());
        content += event.content;
        order += event.content;
      } else {
        calls.push_back(event.name + " " + event.arguments);
        EXPECT_EQ(event.index, static_cast<int>(calls.size()) - 1);
        order += "[" + std::to_string(event.index) + " " + calls.back() + "]";
      }
    }
  }
  std::string content;
  std::string order;
  std::vector<std::string> calls;
};

CallLog ParseCalls(const std::vector<std::string>& chunks) {
  ToolCallParser parser;
  CallLog log;
  for (const std::string& chunk : chunks) log.Add(parser.Push(chunk));
  log.Add(parser.Finish());
  EXPECT_EQ(static_cast<size_t>(parser.num_calls()), log.calls.size());
  return log;
}

std::string Call(const std::string& body) { return "<tool_call>\n" + body + "\n</tool_call>"; }
const char kF[] = R"({"name": "f", "arguments": {"x": 1}})";
const char kG[] = R"({"name": "g", "arguments": {}})";

TEST(ToolCallParserTest, FindsCalls) {
  CallLog log = ParseCalls({Call(kF)});
  EXPECT_EQ(log.order, "[0 f {\"x\": 1}]");
  log = ParseCalls({"Let me see.\n" + Call(kF) + "\n" + Call(kG)});
  EXPECT_EQ(log.order, "Let me see.[0 f {\"x\": 1}][1 g {}]");
  log = ParseCalls({"<tool_call>" + std::string(kG) + "</tool_call>"});
  EXPECT_EQ(log.order, "[0 g {}]");
}

TEST(ToolCallParserTest, TextAroundCallsIsContent) {
  EXPECT_EQ(ParseCalls({"no call\n\n"}).order, "no call\n\n");
  EXPECT_EQ(ParseCalls({"\n\n"}).order, "\n\n");
  EXPECT_EQ(ParseCalls({"a < b <tool"}).order, "a < b <tool");
  EXPECT_EQ(ParseCalls({"\n" + Call(kG) + "\n"}).order, "[0 g {}]");
  EXPECT_EQ(ParseCalls({"a\n" + Call(kG) + "\nb\n"}).order, "a[0 g {}]\n\nb\n");
  EXPECT_EQ(ParseCalls({Call(kG) + "\n\nb\n" + Call(kG)}).order, "[0 g {}]b[1 g {}]");
  EXPECT_EQ(ParseCalls({"</tool_call>x"}).order, "</tool_call>x");
}

TEST(ToolCallParserTest, ArgumentsComeInEveryForm) {
  const auto arguments = [](const std::string& body) {
    const CallLog log = ParseCalls({Call(body)});
    return log.calls.empty() ? "content " + log.content : log.calls[0];
  };
  EXPECT_EQ(arguments(R"({"name":"f"})"), "f {}");
  EXPECT_EQ(arguments(R"({"name":"f","arguments":null})"), "f {}");
  EXPECT_EQ(arguments(R"({"arguments":{"b":1.50,"a":[1,2]},"name":"f"})"),
            "f {\"b\": 1.50, \"a\": [1, 2]}");
  EXPECT_EQ(arguments(R"({"name":"f","arguments":"{\"a\":\"x\"}"})"), "f {\"a\": \"x\"}");
  EXPECT_EQ(arguments(R"({"name":"f","arguments":{"a":"</tool_call> <tool_call>"}})"),
            "f {\"a\": \"</tool_call> <tool_call>\"}");
  EXPECT_EQ(arguments(R"({"name":"f","arguments":{"a":"\"</tool_call>\\"}})"),
            "f {\"a\": \"\\\"</tool_call>\\\\\"}");
}

TEST(ToolCallParserTest, WhatIsNoCallComesBack) {
  for (const char* body :
       {"", "x", "{\"name\": \"f\"", "{\"name\": \"f\", \"arguments\": {}}}", "[]", "\"f\"", "{}",
        "{\"name\": \"\"}", "{\"name\": 5}", "{\"name\": \"f\", \"arguments\": [1]}",
        "{\"name\": \"f\", \"arguments\": \"x\"}", "{\"name\": \"f\", \"arguments\": 5}",
        "{\"name\": \"f\", \"arguments\": \"[]\"}", "{\"name\": \"un\nfinished}", "\"", "\\\""}) {
    const std::string text = "a\n" + Call(body) + "\n";
    EXPECT_EQ(ParseCalls({text}).order, text);
    // And the calls around it are still calls.
    EXPECT_EQ(ParseCalls({Call(kF) + "\n" + Call(body) + "\n" + Call(kG)}).order,
              "[0 f {\"x\": 1}]" + Call(body) + "[1 g {}]")
        << body;
  }
}

TEST(ToolCallParserTest, TheEndMayBeMissing) {
  EXPECT_EQ(ParseCalls({"<tool_call>\n" + std::string(kF)}).order, "[0 f {\"x\": 1}]");
  EXPECT_EQ(ParseCalls({"<tool_call>\n" + std::string(kF) + "\n</tool"}).order,
            "<tool_call>\n" + std::string(kF) + "\n</tool");
  EXPECT_EQ(ParseCalls({"<tool_call>\n{\"name\""}).order, "<tool_call>\n{\"name\"");
  // The next call ends the one before it.
  EXPECT_EQ(ParseCalls({"<tool_call>\n" + std::string(kF) + "\n" + Call(kG)}).order,
            "[0 f {\"x\": 1}][1 g {}]");
  EXPECT_EQ(ParseCalls({"<tool_call>\n{\n" + Call(kG)}).order, "<tool_call>\n{[0 g {}]");
}

TEST(ToolCallParserTest, AnOpenQuoteLosesNothing) {
  // The first call's string never closes; it looks as if the markers after it were inside.
  const std::string broken = "<tool_call>{\"name\": \"f}</tool_call>";
  EXPECT_EQ(ParseCalls({broken + " " + Call(kG)}).order, broken + " [0 g {}]");
  std::string many;
  for (int i = 0; i < 2000; ++i) many += "<tool_call>\"</tool_call>";
  EXPECT_EQ(ParseCalls({many}).order, many);
}

TEST(ToolCallParserTest, ContentComesAtOnceAndCallsWhenTheyAreWhole) {
  ToolCallParser parser;
  EXPECT_EQ(parser.Push("Hello")[0].content, "Hello");
  EXPECT_TRUE(parser.Push(" <tool_").size() == 1) << "only the space is sure";
  EXPECT_EQ(parser.Push("box>")[0].content, "<tool_box>");
  EXPECT_TRUE(parser.Push("<tool_call>\n{\"name\": \"f\"").empty());
  EXPECT_TRUE(parser.in_call());
  EXPECT_EQ(parser.Push("}\n</tool_call>")[0].name, "f");
  EXPECT_FALSE(parser.in_call());
}

TEST(ToolCallParserTest, DoesNotDependOnTheChunks) {
  const std::string parts[] = {Call(kF),
                               Call(kG),
                               Call("{\"name\": \"f"),
                               "<tool_call>",
                               "</tool_call>",
                               "\n",
                               "\n\n",
                               "text",
                               "<",
                               "</tool",
                               "\"",
                               "\\",
                               "{\"name\": \"h\", \"arguments\": {\"s\": \"</tool_call>\"}}",
                               "<tool_",
                               "{",
                               "\xE4\xB8\xAD"};
  std::mt19937 random(17);
  int num_calls = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (size_t i = random() % 10; i > 0; --i) text += parts[random() % std::size(parts)];
    const CallLog whole = ParseCalls({text});
    num_calls += static_cast<int>(whole.calls.size());
    for (const size_t max_piece : {size_t{1}, size_t{3}, size_t{20}}) {
      ASSERT_EQ(ParseCalls(RandomChunks(text, max_piece, &random)).order, whole.order) << text;
    }
    if (whole.calls.empty()) {
      ASSERT_EQ(whole.content, text) << "nothing is lost";
    }
  }
  EXPECT_GT(num_calls, 2000);
}

struct Stopped {
  std::string text;
  std::string matched;
  friend bool operator==(const Stopped&, const Stopped&) = default;
};

Stopped RunStops(const std::vector<std::string>& stops, const std::vector<std::string>& chunks) {
  StopStrings matcher(stops);
  Stopped result;
  for (const std::string& chunk : chunks) {
    result.text += matcher.Push(chunk);
    if (matcher.stopped()) {
      EXPECT_EQ(matcher.Push("more"), "");
    }
  }
  result.text += matcher.Flush();
  result.matched = matcher.matched();
  return result;
}

// The definition: the match with the earliest end; of those, the longest.
Stopped PlainStops(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string best;
    for (const std::string& stop : stops) {
      if (!stop.empty() && stop.size() <= end && stop.size() > best.size() &&
          text.compare(end - stop.size(), stop.size(), stop) == 0) {
        best = stop;
      }
    }
    if (!best.empty()) return {text.substr(0, end - best.size()), best};
  }
  return {text, ""};
}

TEST(StopStringsTest, CutsBeforeTheFirstMatch) {
  EXPECT_EQ(RunStops({"END"}, {"some EN", "D more"}), (Stopped{"some ", "END"}));
  EXPECT_EQ(RunStops({"END"}, {"some EN"}), (Stopped{"some EN", ""}));
  EXPECT_EQ(RunStops({}, {"a", "b"}), (Stopped{"ab", ""}));
  EXPECT_EQ(RunStops({""}, {"a"}), (Stopped{"a", ""}));
  EXPECT_EQ(RunStops({"abcd", "bc"}, {"abcd"}), (Stopped{"a", "bc"})) << "bc is whole first";
  EXPECT_EQ(RunStops({"bc", "abc"}, {"xabc"}), (Stopped{"x", "abc"}));
  EXPECT_EQ(RunStops({"aab"}, {"a", "a", "a", "b"}), (Stopped{"a", "aab"}));
}

TEST(StopStringsTest, HoldsBackOnlyWhatMayBecomeAStop) {
  StopStrings matcher({"\n\nUser:"});
  EXPECT_EQ(matcher.Push("Hi\n"), "Hi");
  EXPECT_EQ(matcher.Push("there\n\n\n"), "\nthere\n");
  EXPECT_EQ(matcher.Push("Us"), "");
  EXPECT_EQ(matcher.Push("e it"), "\n\nUse it");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopStringsTest, EqualsTheDefinitionForEveryCut) {
  std::mt19937 random(23);
  const auto word = [&random](size_t max_size) {
    std::string text;
    for (size_t i = random() % (max_size + 1); i > 0; --i) {
      text += static_cast<char>('a' + random() % 2);
    }
    return text;
  };
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops(random() % 4);
    for (std::string& stop : stops) stop = word(7);
    const std::string text = word(30);
    const Stopped wanted = PlainStops(stops, text);
    ASSERT_EQ(RunStops(stops, RandomChunks(text, 4, &random)), wanted) << text;
    ASSERT_EQ(RunStops(stops, {text}), wanted) << text;
  }
}

}  // namespace
}  // namespace conclave
