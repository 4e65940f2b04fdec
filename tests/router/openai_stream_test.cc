#include "router/openai_stream.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "nlohmann/json.hpp"
#include "text/utf8.h"

namespace conclave {
namespace {

using Json = nlohmann::json;
using ChatEncoder = OpenAiEncoder<v1::ChatEvent>;
using ChatEventList = std::vector<v1::ChatEvent>;

// A vocabulary of four tokens, the last two of which are halves of "é".
absl::string_view Bytes(uint32_t id) {
  constexpr absl::string_view kTokens[] = {"Hello", " you", "\xC3", "\xA9"};
  return id < 4 ? kTokens[id] : absl::string_view();
}

OpenAiResponseInfo Info(absl::string_view fingerprint = "") {
  OpenAiResponseInfo info;
  info.id = "chatcmpl-1";
  info.created = 1700000000;
  info.model = "qwen";
  info.fingerprint = std::string(fingerprint);
  return info;
}

OpenAiChatRequest Request(OpenAiAnswerOptions answer) {
  OpenAiChatRequest request;
  request.answer = answer;
  return request;
}

// ---- events ----

v1::ChatEvent Started() {
  v1::ChatEvent event;
  event.mutable_started()->set_model("qwen");
  return event;
}

v1::ChatEvent Thinking(absl::string_view text) {
  v1::ChatEvent event;
  event.mutable_thinking_delta()->set_text(std::string(text));
  return event;
}

void AddToken(uint32_t id, float logprob, v1::TextDelta* delta) {
  delta->add_ids(id);
  v1::TokenLogprobs* logprobs = delta->add_logprobs();
  logprobs->set_logprob(logprob);
  v1::TokenLogprobs::Entry* top = logprobs->add_top();
  top->set_id(1);
  top->set_logprob(-0.25);
}

v1::ChatEvent Content(absl::string_view text, const std::vector<uint32_t>& ids = {}) {
  v1::ChatEvent event;
  event.mutable_content_delta()->set_text(std::string(text));
  for (uint32_t id : ids) AddToken(id, -0.5, event.mutable_content_delta());
  return event;
}

v1::ChatEvent Call(uint32_t index, absl::string_view id, absl::string_view name,
                   absl::string_view arguments) {
  v1::ChatEvent event;
  v1::ToolCallDelta* call = event.mutable_tool_call_delta();
  call->set_index(index);
  call->set_id(std::string(id));
  call->set_name(std::string(name));
  call->set_arguments(std::string(arguments));
  return event;
}

v1::Finished End(v1::ChatFinishReason reason = v1::CHAT_FINISH_REASON_STOP) {
  v1::Finished finished;
  finished.set_reason(reason);
  v1::Usage* usage = finished.mutable_usage();
  usage->set_prompt_tokens(10);
  usage->set_cached_prompt_tokens(4);
  usage->set_completion_tokens(7);
  usage->set_thinking_tokens(3);
  usage->set_answer_tokens(3);
  v1::ThinkingReport* report = finished.mutable_thinking();
  report->set_mode(v1::THINKING_MODE_THINKING);
  report->set_source(v1::THINKING_SOURCE_SOFT_SWITCH);
  report->set_budget(2);
  report->set_used(2);
  report->set_forced(1);
  report->set_ended_by(v1::THINKING_END_BUDGET);
  return finished;
}

v1::ChatEvent ChatEnd(v1::ChatFinishReason reason = v1::CHAT_FINISH_REASON_STOP) {
  v1::ChatEvent event;
  *event.mutable_finished() = End(reason);
  return event;
}

// ---- reading what was written ----

// The JSON of each frame but the last, which is [DONE].
std::vector<Json> Chunks(absl::string_view frames) {
  std::vector<Json> chunks;
  EXPECT_TRUE(absl::ConsumeSuffix(&frames, "data: [DONE]\n\n"));
  for (absl::string_view frame : absl::StrSplit(frames, "\n\n", absl::SkipEmpty())) {
    EXPECT_TRUE(absl::ConsumePrefix(&frame, "data: ")) << frame;
    chunks.push_back(Json::parse(frame));
  }
  return chunks;
}

std::string Stream(const ChatEventList& events, OpenAiAnswerOptions answer) {
  answer.stream = true;
  const auto encoder = MakeOpenAiChatEncoder(Request(answer), Info(), Bytes);
  std::string frames;
  for (const v1::ChatEvent& event : events) frames += encoder->Add(0, event);
  return frames + encoder->Finish();
}

Json Whole(const ChatEventList& events, OpenAiAnswerOptions answer) {
  const auto encoder = MakeOpenAiChatEncoder(Request(answer), Info(), Bytes);
  for (const v1::ChatEvent& event : events) EXPECT_EQ(encoder->Add(0, event), "");
  return Json::parse(encoder->Finish());
}

const char kUsage[] = R"({"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3}})";

TEST(OpenAiChatResponseTest, IsACompletion) {
  OpenAiAnswerOptions answer;
  answer.thinking_report = true;
  const Json json = Whole(
      {Started(), Thinking("Let me"), Thinking(" think"), Content("Hel"), Content("lo"), ChatEnd()},
      answer);
  EXPECT_EQ(json, Json::parse(absl::StrCat(R"({
      "id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": "qwen",
      "system_fingerprint": null,
      "choices": [{"index": 0, "logprobs": null, "finish_reason": "stop",
        "message": {"role": "assistant", "content": "Hello", "reasoning_content": "Let me think",
                    "reasoning": "Let me think"},
        "thinking": {"mode": "thinking", "source": "soft_switch", "budget": 2, "used": 2,
                     "requested_budget": 0, "limited_by": "none",
                     "forced": 1, "ended_by": "budget"}}],
      "usage": )",
                                           kUsage, "}")));
}

TEST(OpenAiChatResponseTest, HasNullContentOnlyBesideToolCalls) {
  const Json call =
      Whole({Started(), Call(0, "call_a", "add", R"({"a": 1})"), Call(1, "call_b", "sub", "{}"),
             ChatEnd(v1::CHAT_FINISH_REASON_TOOL_CALLS)},
            {})["choices"][0];
  EXPECT_EQ(call, Json::parse(R"({"index": 0, "logprobs": null, "finish_reason": "tool_calls",
      "message": {"role": "assistant", "content": null, "reasoning_content": null,
        "reasoning": null, "tool_calls": [
          {"id": "call_a", "type": "function",
           "function": {"name": "add", "arguments": "{\"a\": 1}"}},
          {"id": "call_b", "type": "function", "function": {"name": "sub", "arguments": "{}"}}]}})"));
  const Json both = Whole({Started(), Content("So: "), Call(0, "c", "f", "{}"), ChatEnd()}, {});
  EXPECT_EQ(both["choices"][0]["message"]["content"], "So: ");
  const Json nothing = Whole({Started(), ChatEnd(v1::CHAT_FINISH_REASON_LENGTH)}, {});
  EXPECT_EQ(nothing["choices"][0]["message"]["content"], "");
  EXPECT_EQ(nothing["choices"][0]["finish_reason"], "length");
  EXPECT_FALSE(nothing["choices"][0]["message"].contains("tool_calls"));
  EXPECT_FALSE(nothing["choices"][0].contains("thinking"));
}

TEST(OpenAiChatResponseTest, LeavesReasoningOutAndCountsIt) {
  OpenAiAnswerOptions answer;
  answer.include_reasoning = false;
  const ChatEventList events = {Started(), Thinking("secret"), Content("Hi"), ChatEnd()};
  const Json json = Whole(events, answer);
  EXPECT_EQ(json["choices"][0]["message"]["reasoning_content"], nullptr);
  EXPECT_EQ(json["choices"][0]["message"]["reasoning"], nullptr);
  EXPECT_EQ(json["usage"]["completion_tokens_details"]["reasoning_tokens"], 3);
  EXPECT_FALSE(absl::StrContains(Stream(events, answer), "secret"));
}

TEST(OpenAiChatResponseTest, DropsAllCallsButTheFirstIfAskedTo) {
  OpenAiAnswerOptions answer;
  answer.one_tool_call = true;
  const ChatEventList events = {Started(), Call(0, "call_a", "f", "{}"),
                                Call(1, "call_b", "g", "{}"),
                                ChatEnd(v1::CHAT_FINISH_REASON_TOOL_CALLS)};
  EXPECT_EQ(Whole(events, answer)["choices"][0]["message"]["tool_calls"].size(), 1u);
  const std::string frames = Stream(events, answer);
  EXPECT_TRUE(absl::StrContains(frames, "call_a"));
  EXPECT_FALSE(absl::StrContains(frames, "call_b"));
}

TEST(OpenAiChatResponseTest, HasLogprobsOfTheAnswersTokens) {
  OpenAiAnswerOptions answer;
  answer.logprobs = true;
  v1::ChatEvent thinking = Thinking("x");
  AddToken(0, -3, thinking.mutable_thinking_delta());
  v1::ChatEvent impossible = Content("");
  AddToken(3, -std::numeric_limits<float>::infinity(), impossible.mutable_content_delta());
  const Json logprobs =
      Whole({Started(), thinking, Content("Hello", {0}), Content("", {2}), impossible, ChatEnd()},
            answer)["choices"][0]["logprobs"];
  const std::string top =
      R"("top_logprobs": [{"token": " you", "logprob": -0.25, "bytes": [32, 121, 111, 117]}])";
  EXPECT_EQ(logprobs,
            Json::parse(absl::StrCat(
                R"({"content": [
                {"token": "Hello", "logprob": -0.5, "bytes": [72, 101, 108, 108, 111], )",
                top, R"(}, {"token": "�", "logprob": -0.5, "bytes": [195], )", top,
                R"(}, {"token": "�", "logprob": -9999.0, "bytes": [169], )", top, "}]}")));
  EXPECT_EQ(Whole({Started(), ChatEnd()}, answer)["choices"][0]["logprobs"],
            Json::parse(R"({"content": []})"));
}

TEST(OpenAiChatResponseTest, CountsThePromptOnceAndNamesTheModelsFingerprint) {
  OpenAiAnswerOptions answer;
  answer.n = 3;
  const auto encoder = MakeOpenAiChatEncoder(Request(answer), Info("abc"), Bytes);
  for (int choice : {2, 0, 1}) {
    encoder->Add(choice, Started());
    encoder->Add(choice, Content(absl::StrCat("answer ", choice)));
    encoder->Add(choice, ChatEnd(v1::CHAT_FINISH_REASON_CANCELLED));
  }
  const Json json = Json::parse(encoder->Finish());
  EXPECT_EQ(json["system_fingerprint"], "abc");
  ASSERT_EQ(json["choices"].size(), 3u);
  EXPECT_EQ(json["choices"][1]["message"]["content"], "answer 1");
  EXPECT_EQ(json["choices"][1]["finish_reason"], "stop");
  EXPECT_EQ(json["usage"], Json::parse(R"({"prompt_tokens": 10, "completion_tokens": 21,
      "total_tokens": 31, "prompt_tokens_details": {"cached_tokens": 4},
      "completion_tokens_details": {"reasoning_tokens": 9}})"));
}

TEST(OpenAiChatStreamTest, IsReadAsOpenAisClientsReadIt) {
  OpenAiAnswerOptions answer;
  answer.include_usage = true;
  answer.thinking_report = true;
  const std::vector<Json> chunks =
      Chunks(Stream({Started(), Thinking("Hm"), Thinking(""), Content("Hi"), Content("", {0}),
                     Call(0, "call_a", "f", ""), Call(0, "", "", "{}"), ChatEnd()},
                    answer));
  const std::vector<std::string> deltas = {
      R"({"role": "assistant", "content": ""})",
      R"({"reasoning_content": "Hm", "reasoning": "Hm"})",
      R"({"content": "Hi"})",
      R"({"tool_calls": [{"index": 0, "id": "call_a", "type": "function",
          "function": {"name": "f", "arguments": ""}}]})",
      R"({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})",
      "{}",
  };
  ASSERT_EQ(chunks.size(), deltas.size() + 1);
  for (size_t i = 0; i < deltas.size(); ++i) {
    Json expected = Json::parse(R"({"id": "chatcmpl-1", "object": "chat.completion.chunk",
        "created": 1700000000, "model": "qwen", "system_fingerprint": null, "usage": null,
        "choices": [{"index": 0, "logprobs": null, "finish_reason": null}]})");
    Json& choice = expected["choices"][0];
    choice["delta"] = Json::parse(deltas[i]);
    if (i + 1 == deltas.size()) {
      choice["finish_reason"] = "stop";
      choice["thinking"] = Json::parse(R"({"mode": "thinking", "source": "soft_switch",
          "budget": 2, "requested_budget": 0, "limited_by": "none",
          "used": 2, "forced": 1, "ended_by": "budget"})");
    }
    EXPECT_EQ(chunks[i], expected);
  }
  EXPECT_EQ(chunks.back()["choices"], Json::array());
  EXPECT_EQ(chunks.back()["usage"], Json::parse(kUsage));
  EXPECT_EQ(chunks.back()["object"], "chat.completion.chunk");
}

TEST(OpenAiChatStreamTest, HasNoUsageUnlessAsked) {
  const std::vector<Json> chunks = Chunks(Stream({Started(), Content("Hi"), ChatEnd()}, {}));
  ASSERT_EQ(chunks.size(), 3u);
  for (const Json& chunk : chunks) EXPECT_FALSE(chunk.contains("usage"));
}

// ---- stream and whole agree ----

class RandomEvents {
 public:
  explicit RandomEvents(uint32_t seed) : random_(seed) {}

  size_t Below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }

  std::string Text() {
    constexpr absl::string_view kPieces[] = {"a", "\"", "\n", "é", "漢", "<tool_call>", "\\u", " "};
    std::string text;
    for (size_t n = Below(6); n > 0; --n)
      absl::StrAppend(&text, kPieces[Below(std::size(kPieces))]);
    return text;
  }

  ChatEventList Choice(int choice) {
    ChatEventList events = {Started()};
    for (size_t n = Below(3); n > 0; --n) events.push_back(Thinking(Text()));
    if (Below(2) == 0) events.emplace_back().mutable_thinking_done();
    uint32_t num_calls = 0;
    for (size_t n = Below(5); n > 0; --n) {
      if (Below(3) > 0) {
        events.push_back(Content(Text(), std::vector<uint32_t>(Below(4), 0)));
      } else {
        events.push_back(
            Call(num_calls, absl::StrCat("call_", choice, "_", num_calls), "f", Text()));
        ++num_calls;
      }
    }
    events.push_back(
        ChatEnd(num_calls > 0 ? v1::CHAT_FINISH_REASON_TOOL_CALLS : v1::CHAT_FINISH_REASON_LENGTH));
    return events;
  }

  // The same events with deltas cut in several: the ids go anywhere, the text between characters.
  ChatEventList Cut(const ChatEventList& events) {
    ChatEventList cut;
    for (const v1::ChatEvent& event : events) {
      if (event.has_content_delta()) {
        CutText(event.content_delta(), [&] { return cut.emplace_back().mutable_content_delta(); });
      } else if (event.has_thinking_delta()) {
        CutText(event.thinking_delta(),
                [&] { return cut.emplace_back().mutable_thinking_delta(); });
      } else if (event.has_tool_call_delta()) {
        const v1::ToolCallDelta& call = event.tool_call_delta();
        cut.push_back(event);
        cut.back().mutable_tool_call_delta()->clear_arguments();
        for (const std::string& piece : Pieces(call.arguments())) {
          cut.push_back(Call(call.index(), "", "", piece));
        }
      } else {
        cut.push_back(event);
      }
    }
    return cut;
  }

 private:
  std::vector<std::string> Pieces(absl::string_view text) {
    std::vector<std::string> pieces(1);
    while (!text.empty()) {
      if (Below(3) == 0) pieces.emplace_back();
      const size_t num_bytes = static_cast<size_t>(DecodeValidUtf8(text).num_bytes);
      absl::StrAppend(&pieces.back(), text.substr(0, num_bytes));
      text.remove_prefix(num_bytes);
    }
    return pieces;
  }

  template <typename AddDelta>
  void CutText(const v1::TextDelta& delta, AddDelta add) {
    int next_id = 0;
    const auto move_id = [&](v1::TextDelta* to) {
      to->add_ids(delta.ids(next_id));
      *to->add_logprobs() = delta.logprobs(next_id++);
    };
    for (const std::string& piece : Pieces(delta.text())) {
      v1::TextDelta* to = add();
      to->set_text(piece);
      while (next_id < delta.ids_size() && Below(2) == 0) move_id(to);
    }
    while (next_id < delta.ids_size()) move_id(add());
  }

  std::mt19937 random_;
};

// Folds the chunks of a stream into the response that says the same.
class ResponseOfStream {
 public:
  explicit ResponseOfStream(size_t num_choices) : choices_(num_choices) {
    for (size_t i = 0; i < num_choices; ++i) {
      choices_[i] = Json::parse(R"({"message": {"reasoning_content": "", "reasoning": ""},
                                    "logprobs": {"content": []}})");
      choices_[i]["index"] = i;
    }
  }

  void Add(const Json& chunk) {
    if (!chunk["usage"].is_null()) response_["usage"] = chunk["usage"];
    for (const Json& part : chunk["choices"]) {
      Json& choice = choices_[part["index"].get<size_t>()];
      AddDelta(part["delta"], &choice["message"]);
      if (!part["logprobs"].is_null()) {
        for (const Json& token : part["logprobs"]["content"]) {
          choice["logprobs"]["content"].push_back(token);
        }
      }
      if (!part["finish_reason"].is_null()) {
        choice["finish_reason"] = part["finish_reason"];
        choice["thinking"] = part["thinking"];
      }
    }
  }

  Json Take() {
    for (Json& choice : choices_) {
      Json& message = choice["message"];
      for (const char* key : {"reasoning_content", "reasoning"}) {
        if (message[key] == "") message[key] = nullptr;
      }
      if (message.contains("tool_calls") && message["content"] == "") message["content"] = nullptr;
    }
    response_["choices"] = choices_;
    return response_;
  }

 private:
  static void Append(const Json& from, const char* key, Json* to) {
    if (!from.contains(key)) return;
    Json& text = (*to)[key];
    text =
        absl::StrCat(text.is_null() ? "" : text.get<std::string>(), from[key].get<std::string>());
  }

  static void AddDelta(const Json& delta, Json* message) {
    for (const char* key : {"role", "content", "reasoning_content", "reasoning"}) {
      Append(delta, key, message);
    }
    if (!delta.contains("tool_calls")) return;
    for (const Json& part : delta["tool_calls"]) {
      Json& call = (*message)["tool_calls"][part["index"].get<size_t>()];
      for (const char* key : {"id", "type"}) Append(part, key, &call);
      for (const char* key : {"name", "arguments"})
        Append(part["function"], key, &call["function"]);
    }
  }

  Json response_;
  std::vector<Json> choices_;
};

TEST(OpenAiChatStreamTest, SaysWhatTheWholeResponseSaysHoweverItWasCut) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    RandomEvents random(seed);
    OpenAiAnswerOptions answer;
    answer.n = 1 + static_cast<int>(random.Below(3));
    answer.logprobs = answer.thinking_report = answer.include_usage = true;
    answer.one_tool_call = random.Below(4) == 0;
    answer.include_reasoning = random.Below(4) != 0;
    const size_t n = static_cast<size_t>(answer.n);

    const auto whole = MakeOpenAiChatEncoder(Request(answer), Info(), Bytes);
    std::vector<ChatEventList> cut(n);
    for (size_t i = 0; i < n; ++i) {
      const ChatEventList events = random.Choice(static_cast<int>(i));
      for (const v1::ChatEvent& event : events) whole->Add(static_cast<int>(i), event);
      cut[i] = random.Cut(events);
    }
    Json expected = Json::parse(whole->Finish());

    answer.stream = true;
    const auto stream = MakeOpenAiChatEncoder(Request(answer), Info(), Bytes);
    std::string frames;
    std::vector<size_t> next(n, 0);
    size_t left = 0;
    for (const ChatEventList& events : cut) left += events.size();
    while (left > 0) {
      const size_t i = random.Below(n);
      if (next[i] == cut[i].size()) continue;
      frames += stream->Add(static_cast<int>(i), cut[i][next[i]++]);
      --left;
    }
    frames += stream->Finish();

    ResponseOfStream folded(n);
    for (const Json& chunk : Chunks(frames)) folded.Add(chunk);
    for (const char* key : {"id", "object", "created", "model", "system_fingerprint"}) {
      expected.erase(key);
    }
    ASSERT_EQ(folded.Take(), expected) << "seed " << seed << "\n" << frames;
  }
}

}  // namespace
}  // namespace conclave
