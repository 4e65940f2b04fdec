// The parsers of an answer, one behind the other as the router has them, on random answers: what
// was put into an answer comes out of it, however it was cut into tokens and pieces.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/text/text_test_data.h"
#include "text/json_text.h"
#include "text/reasoning_splitter.h"
#include "text/stop_strings.h"
#include "text/stream_decoder.h"
#include "text/tool_call_parser.h"
#include "text/utf8.h"

namespace conclave {
namespace {

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  size_t Below(size_t bound) { return engine_() % bound; }
  std::mt19937& engine() { return engine_; }

  // Text of what is hard to tell apart: markup, quotes, escapes, braces, characters of many bytes.
  std::string NastyText(size_t max_parts) {
    static const char* const kParts[] = {"a",
                                         " ",
                                         "\"",
                                         "\\",
                                         "\\\"",
                                         "{",
                                         "}",
                                         "]",
                                         "\n",
                                         "</tool_call>",
                                         "<tool_call>",
                                         "</tool_",
                                         "<",
                                         "\xe4\xb8\xad",
                                         "\t",
                                         "\r",
                                         "<think>",
                                         "</think>",
                                         "\xf0\x9f\x98\x80",
                                         "\x01",
                                         "\xc3\xa9"};
    std::string text;
    for (size_t i = Below(max_parts + 1); i > 0; --i) text += kParts[Below(std::size(kParts))];
    return text;
  }

  JsonValue Json(int depth) {
    switch (Below(depth > 0 ? 6 : 4)) {
      case 0:
        return JsonValue();
      case 1:
        return JsonValue::Bool(Below(2) == 0);
      case 2: {
        static const char* const kNumbers[] = {"0", "-1", "1.50", "1e5", "12345678901234567890123"};
        return JsonValue::Number(kNumbers[Below(std::size(kNumbers))]);
      }
      case 3:
        return JsonValue::String(NastyText(6));
      case 4: {
        JsonValue::Array items;
        for (size_t i = Below(4); i > 0; --i) items.push_back(Json(depth - 1));
        return JsonValue::MakeArray(std::move(items));
      }
      default:
        return Object(depth - 1);
    }
  }
  JsonValue Object(int depth) {
    JsonValue::Object members;
    for (size_t i = 0, n = Below(4); i < n; ++i) {
      members.emplace_back(NastyText(3) + std::to_string(i), Json(depth));
    }
    return JsonValue::MakeObject(std::move(members));
  }

 private:
  std::mt19937 engine_;
};

struct Answer {
  std::string thinking;
  std::string content;
  std::vector<std::string> calls;  // "name arguments"
  friend bool operator==(const Answer&, const Answer&) = default;
};

void PrintTo(const Answer& answer, std::ostream* out) {
  *out << "thinking <" << answer.thinking << "> content <" << answer.content << ">";
  for (const std::string& call : answer.calls) *out << " call <" << call << ">";
}

void Add(const std::vector<ToolCallEvent>& events, Answer* answer) {
  for (const ToolCallEvent& event : events) {
    if (event.kind == ToolCallEvent::Kind::kContent) {
      answer->content += event.content;
    } else {
      EXPECT_EQ(static_cast<size_t>(event.index), answer->calls.size());
      answer->calls.push_back(event.name + " " + event.arguments);
    }
  }
}

Answer ParseCalls(const std::vector<std::string>& pieces) {
  ToolCallParser parser;
  Answer answer;
  for (const std::string& piece : pieces) Add(parser.Push(piece), &answer);
  Add(parser.Finish(), &answer);
  return answer;
}

// The call's text with the whitespace and the order of keys that models write.
std::string WriteCall(const std::string& name, const JsonValue& arguments, Random& random) {
  const std::string name_text = ToJson(JsonValue::String(name));
  const std::string json = ToJson(arguments, NumberSpelling::kAsWritten);
  const std::string arguments_text =
      random.Below(4) == 0 ? ToJson(JsonValue::String(json)) : json;  // some quote the object
  const std::string body =
      random.Below(4) == 0 ? "{\"arguments\":" + arguments_text + " ,\n\"name\" :" + name_text + "}"
                           : "{\"name\": " + name_text + ", \"arguments\": " + arguments_text + "}";
  static const char* const kSpaces[] = {"\n", "", " ", "\n\n", "\t\n "};
  return "<tool_call>" + std::string(kSpaces[random.Below(5)]) + body + kSpaces[random.Below(5)] +
         "</tool_call>";
}

TEST(ToolCallParserProperty, CallsComeBackAsTheyWereWritten) {
  Random random(31);
  for (int round = 0; round < 4000; ++round) {
    std::string text;
    Answer written;
    for (size_t i = random.Below(5); i > 0; --i) {
      if (random.Below(3) == 0) {
        const std::string between = "word" + std::to_string(i);
        text += between;
        written.content += between;
      }
      const std::string name = "f" + random.NastyText(2);
      const JsonValue arguments = random.Object(3);
      text += WriteCall(name, arguments, random);
      written.calls.push_back(name + " " + ToJson(arguments, NumberSpelling::kAsWritten));
    }
    ASSERT_EQ(ParseCalls({text}), written) << text;
    for (const size_t max_piece : {size_t{1}, size_t{2}, size_t{7}, size_t{40}}) {
      ASSERT_EQ(ParseCalls(RandomChunks(text, max_piece, &random.engine())), written) << text;
    }
  }
}

TEST(ToolCallParserProperty, ABrokenCallTakesNoOtherWithIt) {
  Random random(37);
  const std::string good = "<tool_call>\n{\"name\": \"good\", \"arguments\": {}}\n</tool_call>";
  for (int round = 0; round < 3000; ++round) {
    // Damage that leaves the quotes alone: with a string open, the end of a call is a guess.
    std::string body = "{\"name\": \"f\", \"arguments\": {\"x\": [1, 2]}}";
    const size_t at = random.Below(body.size());
    if (body[at] == '"') continue;
    static const char kOdd[] = "{}[],:x1";
    if (random.Below(2) == 0) {
      body.erase(at, 1);
    } else {
      body[at] = kOdd[random.Below(sizeof(kOdd) - 1)];
    }
    const std::string middle = "<tool_call>" + body + "</tool_call>";
    const Answer answer = ParseCalls(RandomChunks(good + middle + good, 9, &random.engine()));
    ASSERT_GE(answer.calls.size(), 2u) << body;
    EXPECT_EQ(answer.calls.front(), "good {}");
    EXPECT_EQ(answer.calls.back(), "good {}");
    EXPECT_EQ(answer.content, answer.calls.size() == 3 ? "" : middle);
  }
}

// Decoder, splitter, stop strings, calls: ids to what a client sees.
Answer ReadIds(const std::vector<uint32_t>& ids, const std::vector<std::string>& stop_texts) {
  const Vocabulary& vocabulary = Qwen3Tokenizer().vocabulary();
  StreamDecoder decoder(&vocabulary, /*skip_special=*/true);
  ReasoningSplitter splitter(vocabulary, /*start_inside=*/false);
  StopStrings stops(stop_texts);
  ToolCallParser parser;
  Answer answer;
  const auto add = [&](const SplitText& split) {
    answer.thinking += split.thinking;
    if (!split.answer.empty()) Add(parser.Push(stops.Push(split.answer)), &answer);
  };
  for (const uint32_t id : ids) {
    add(splitter.Push(id, decoder.Push(id)));
    if (stops.stopped()) break;
  }
  if (!stops.stopped()) {
    add(splitter.Flush(decoder.Flush()));
    Add(parser.Push(stops.Flush()), &answer);
  }
  Add(parser.Finish(), &answer);
  return answer;
}

// One of the many ways to write `text` in tokens: random pieces, each as the tokenizer has it, or
// byte by byte where a piece holds half a character. Markup is never matched.
std::vector<uint32_t> SomeIds(const std::string& text, size_t max_piece, Random& random) {
  static const std::vector<uint32_t>* const byte_ids = [] {
    auto* ids = new std::vector<uint32_t>(256);
    for (uint32_t id = 0; id < 256; ++id) {
      (*ids)[static_cast<uint8_t>(Qwen3Tokenizer().vocabulary().Bytes(id)[0])] = id;
    }
    return ids;
  }();
  std::vector<uint32_t> ids;
  for (const std::string& piece : RandomChunks(text, max_piece, &random.engine())) {
    const auto encoded = Qwen3Tokenizer().Encode(piece, AddedTokens::kPlain);
    if (encoded.ok()) {
      ids.insert(ids.end(), encoded->begin(), encoded->end());
    } else {
      for (const char c : piece) ids.push_back((*byte_ids)[static_cast<uint8_t>(c)]);
    }
  }
  return ids;
}

TEST(AnswerProperty, DoesNotDependOnTheTokens) {
  const uint32_t think = Qwen3Tokenizer().vocabulary().IdOfAdded("<think>").value();
  const uint32_t end_think = Qwen3Tokenizer().vocabulary().IdOfAdded("</think>").value();
  Random random(41);
  for (int round = 0; round < 1500; ++round) {
    // Texts between markers; what only looks like a marker is text, and so are calls in thinking.
    std::vector<std::string> texts;
    for (size_t i = 1 + random.Below(4); i > 0; --i) {
      std::string text = random.NastyText(8);
      if (random.Below(2) == 0) text += WriteCall("f", random.Object(2), random);
      texts.push_back(text + random.NastyText(3));
    }
    std::vector<std::string> stops;
    if (random.Below(3) == 0) stops = {"}]", "\n\n\n"};
    const auto ids_with = [&](size_t max_piece) {
      std::vector<uint32_t> ids;
      for (size_t i = 0; i < texts.size(); ++i) {
        if (i > 0) ids.push_back(i % 2 == 1 ? think : end_think);
        const std::vector<uint32_t> some = SomeIds(texts[i], max_piece, random);
        ids.insert(ids.end(), some.begin(), some.end());
      }
      return ids;
    };
    const Answer whole = ReadIds(ids_with(10000), stops);
    for (const size_t max_piece : {size_t{1}, size_t{3}, size_t{12}}) {
      ASSERT_EQ(ReadIds(ids_with(max_piece), stops), whole) << "round " << round;
    }
    for (size_t i = 1; i < texts.size(); i += 2) {  // the text of each block of thinking
      const size_t first = texts[i].find_first_not_of('\n');
      if (first == std::string::npos || !stops.empty()) continue;
      const size_t last = texts[i].find_last_not_of('\n');
      EXPECT_NE(whole.thinking.find(texts[i].substr(first, last + 1 - first)), std::string::npos);
    }
  }
}

TEST(AnswerProperty, AnyIdsDecodeInTheStreamAsAtOnce) {
  Random random(43);
  const Vocabulary& vocabulary = Qwen3Tokenizer().vocabulary();
  for (int round = 0; round < 2000; ++round) {
    std::vector<uint32_t> ids;
    for (size_t i = random.Below(40); i > 0; --i) {
      // Half are single bytes, so that broken characters are common.
      ids.push_back(
          static_cast<uint32_t>(random.Below(2) == 0 ? random.Below(256) : random.Below(152000)));
    }
    for (const bool skip_special : {false, true}) {
      StreamDecoder decoder(&vocabulary, skip_special);
      std::string streamed;
      for (const uint32_t id : ids) {
        const std::string piece = decoder.Push(id);
        ASSERT_EQ(ValidUtf8Prefix(piece), piece.size());
        streamed += piece;
      }
      streamed += decoder.Flush();
      ASSERT_EQ(streamed, Qwen3Tokenizer().Decode(ids, skip_special));
    }
  }
}

}  // namespace
}  // namespace conclave
