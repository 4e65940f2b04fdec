#include "router/chat_events.h"

#include <string>
#include <utility>
#include <vector>

#include "router/generate_events.h"
#include "tests/router/test_router.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Collects what is delivered.
struct Collector final : RequestObserver<v1::ChatEvent> {
  void OnEvents(std::vector<v1::ChatEvent> events) override {
    for (const v1::ChatEvent& event : events) Add(event, &transcript);
  }
  void OnEnd(absl::Status status) override { transcript.status = status; }
  Transcript transcript;
};

// What a stream of ids becomes. A worker's states are not needed here but for the counts.
class Stream {
 public:
  explicit Stream(const v1::ChatRequest& request, const ServedModel& model = TestModel())
      : prepared_(*PrepareChat(model, request, kTestContext)), events_(model, &collector_) {
    events_.Start(prepared_, v1::Started());
  }

  // One event with the ids of `text`; true: no more wanted.
  bool Push(absl::string_view text, int num_forced = 0) {
    v1::TokenEvent event;
    for (uint32_t id : Encode(text)) event.add_ids(id);
    event.set_num_forced(num_forced);
    return Push(event);
  }
  bool Push(const v1::TokenEvent& event) {
    const bool stopped = events_.Push(event);
    Deliver();
    return stopped;
  }
  // Each byte and each added token in an event of its own.
  bool PushEach(absl::string_view text) {
    for (uint32_t id : Encode(text)) {
      v1::TokenEvent event;
      event.add_ids(id);
      if (Push(event)) return true;
    }
    return false;
  }
  Transcript Finish(v1::ChatFinishReason reason = v1::CHAT_FINISH_REASON_STOP) {
    events_.Finish(reason, 0);
    Deliver();
    return collector_.transcript;
  }

 private:
  void Deliver() {
    if (events_.HasEvents()) events_.TakeEvents()();
  }

  Collector collector_;
  PreparedRequest prepared_;
  ChatEvents events_;
};

v1::ChatRequest WithTools() {
  v1::ChatRequest request = UserSays("hi");
  request.add_tools("{\"name\": \"f\"}");
  return request;
}

constexpr char kCall[] = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";

TEST(ChatEvents, SplitsThinkingFromAnswer) {
  for (bool each : {false, true}) {
    Stream stream(UserSays("hi"));
    const std::string text = "<think>\nhmm, \xc3\xa4\n</think>\n\nhello";
    if (each) {
      stream.PushEach(text);
    } else {
      stream.Push(text);
    }
    const Transcript transcript = stream.Finish();
    EXPECT_EQ(transcript.thinking, "hmm, \xc3\xa4");
    EXPECT_EQ(transcript.content, "hello");
    EXPECT_THAT(transcript.kinds, ElementsAre("started", "thinking_delta", "thinking_done",
                                              "content_delta", "finished"));
    EXPECT_EQ(transcript.ids, Encode(text));
    EXPECT_EQ(transcript.finished.reason(), v1::CHAT_FINISH_REASON_STOP);
  }
}

TEST(ChatEvents, AThinkingModelStartsInside) {
  const auto model = LoadTestModel("thinking-2507");
  Stream stream(UserSays("hi"), *model);
  stream.PushEach("hmm\n</think>\n\nhello");
  const Transcript transcript = stream.Finish();
  EXPECT_EQ(transcript.thinking, "hmm");
  EXPECT_EQ(transcript.content, "hello");
}

TEST(ChatEvents, TheStopIdAndControlTokensHaveNoText) {
  Stream stream(UserSays("hi"));
  v1::TokenEvent event;
  for (uint32_t id : Encode("a<|im_start|>bc")) event.add_ids(id);
  event.set_finish_reason(v1::FINISH_REASON_STOP);
  event.set_stop_id(Encode("c")[0]);
  stream.Push(event);
  const Transcript transcript = stream.Finish();
  EXPECT_EQ(transcript.content, "ab");
  EXPECT_EQ(transcript.ids, Encode("a<|im_start|>bc"));
  EXPECT_EQ(transcript.finished.usage().completion_tokens(), 4u);
}

TEST(ChatEvents, StopStringsAreFoundAcrossTokensInTheAnswerOnly) {
  v1::ChatRequest request = UserSays("hi");
  request.add_stop("END");
  request.add_stop("ENDING");
  Stream stream(request);
  EXPECT_FALSE(stream.PushEach("<think>END</think>one E EN two "));
  EXPECT_TRUE(stream.PushEach("ENDless"));
  const Transcript transcript = stream.Finish();
  EXPECT_EQ(transcript.thinking, "END");
  EXPECT_EQ(transcript.content, "one E EN two ");
  EXPECT_EQ(transcript.finished.stop_string(), "END");
  EXPECT_EQ(transcript.finished.reason(), v1::CHAT_FINISH_REASON_STOP);
  EXPECT_EQ(transcript.ids, Encode("<think>END</think>one E EN two END"));
}

TEST(ChatEvents, IdsAfterAStopStringAreNeitherSentNorCounted) {
  v1::ChatRequest request = UserSays("hi");
  request.add_stop("b");
  Stream stream(request);
  EXPECT_TRUE(stream.Push("abcdef"));
  const Transcript transcript = stream.Finish();
  EXPECT_EQ(transcript.content, "a");
  EXPECT_EQ(transcript.ids, Encode("ab"));
  EXPECT_EQ(transcript.finished.usage().completion_tokens(), 2u);
}

TEST(ChatEvents, TextHeldBackForAStopStringComesAtTheEnd) {
  v1::ChatRequest request = UserSays("hi");
  request.add_stop("END");
  Stream stream(request);
  stream.PushEach("the EN");
  const Transcript transcript = stream.Finish(v1::CHAT_FINISH_REASON_LENGTH);
  EXPECT_EQ(transcript.content, "the EN");
  EXPECT_EQ(transcript.finished.reason(), v1::CHAT_FINISH_REASON_LENGTH);
  EXPECT_EQ(transcript.finished.stop_string(), "");
}

TEST(ChatEvents, AHalfCharacterAtTheEndIsAReplacementCharacter) {
  Stream stream(UserSays("hi"));
  v1::TokenEvent event;
  event.add_ids(Encode("\xc3\xa4")[0]);
  stream.Push(event);
  EXPECT_EQ(stream.Finish(v1::CHAT_FINISH_REASON_LENGTH).content, "\xef\xbf\xbd");
}

TEST(ChatEvents, ParsesToolCallsIfThereAreTools) {
  Stream stream(WithTools());
  const std::string text = std::string("<think>x</think>let me see\n") + kCall + "\n" + kCall;
  stream.PushEach(text);
  const Transcript transcript = stream.Finish();
  EXPECT_EQ(transcript.content, "let me see");
  ASSERT_EQ(transcript.tool_calls.size(), 2u);
  EXPECT_EQ(transcript.tool_calls[0].index(), 0u);
  EXPECT_EQ(transcript.tool_calls[1].index(), 1u);
  EXPECT_EQ(transcript.tool_calls[0].name(), "f");
  EXPECT_EQ(transcript.tool_calls[0].arguments(), "{\"x\": 1}");
  EXPECT_NE(transcript.tool_calls[0].id(), "");
  EXPECT_NE(transcript.tool_calls[0].id(), transcript.tool_calls[1].id());
  EXPECT_EQ(transcript.finished.reason(), v1::CHAT_FINISH_REASON_TOOL_CALLS);
  EXPECT_EQ(transcript.ids, Encode(text));  // ids of calls too, each once
}

TEST(ChatEvents, WithoutToolsTagsPassUntouched) {
  Stream stream(UserSays("hi"));
  stream.PushEach(kCall);
  const Transcript transcript = stream.Finish();
  EXPECT_EQ(transcript.content, kCall);
  EXPECT_THAT(transcript.tool_calls, IsEmpty());
  EXPECT_EQ(transcript.finished.reason(), v1::CHAT_FINISH_REASON_STOP);
}

TEST(ChatEvents, ACallCutByLengthIsContent) {
  Stream stream(WithTools());
  stream.PushEach("<tool_call>\n{\"name\": ");
  const Transcript transcript = stream.Finish(v1::CHAT_FINISH_REASON_LENGTH);
  EXPECT_EQ(transcript.content, "<tool_call>\n{\"name\": ");
  EXPECT_EQ(transcript.finished.reason(), v1::CHAT_FINISH_REASON_LENGTH);
}

TEST(ChatEvents, CountsThinkingForcedAndAnswerApart) {
  Stream stream(UserSays("hi"));
  stream.Push("<think>abc");
  // The automaton forces " stop</think>!" (7 ids), then the model says "d" and ends.
  v1::TokenEvent event;
  for (uint32_t id : Encode(" stop</think>!d<|im_end|>")) event.add_ids(id);
  event.set_num_forced(7);
  event.set_finish_reason(v1::FINISH_REASON_STOP);
  event.set_stop_id(AddedId("<|im_end|>"));
  event.mutable_thinking()->set_used(3);
  event.mutable_thinking()->set_forced(6);
  event.mutable_thinking()->set_budget(3);
  event.mutable_thinking()->set_ended_by(v1::THINKING_END_BUDGET);
  stream.Push(event);
  const Transcript transcript = stream.Finish();
  const v1::Usage& usage = transcript.finished.usage();
  EXPECT_EQ(usage.completion_tokens(), 13u);
  EXPECT_EQ(usage.thinking_tokens(), 9u);  // 3 chosen, 6 forced
  EXPECT_EQ(usage.answer_tokens(), 2u);    // "d" and the stop id; the rest are the two marks
  EXPECT_EQ(transcript.finished.thinking().ended_by(), v1::THINKING_END_BUDGET);
  EXPECT_EQ(transcript.finished.thinking().budget(), 3);
  ASSERT_EQ(transcript.thinking_done.size(), 1u);
  EXPECT_EQ(transcript.thinking_done[0].used(), 3u);
  EXPECT_EQ(transcript.thinking_done[0].forced(), 6u);
}

TEST(ChatEvents, ThinkingThatReopensIsThinking) {
  Stream stream(UserSays("hi"));
  stream.PushEach("<think>a</think>b<think>c</think>d");
  const Transcript transcript = stream.Finish();
  EXPECT_EQ(transcript.thinking, "a\nc");
  EXPECT_EQ(transcript.content, "bd");
  EXPECT_EQ(transcript.thinking_done.size(), 2u);
}

TEST(ChatEvents, LogprobsStayWithTheirIds) {
  Stream stream(UserSays("hi"));
  v1::TokenEvent event;
  float value = 0;
  for (uint32_t id : Encode("<think>a</think>bc")) {
    event.add_ids(id);
    event.add_logprobs()->set_logprob(value -= 1);
  }
  stream.Push(event);
  EXPECT_THAT(stream.Finish().logprobs, ElementsAre(-1, -2, -3, -4, -5));
}

}  // namespace
}  // namespace conclave
