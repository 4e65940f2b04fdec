#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "router/prompt_builder.h"
#include "router/request_events.h"
#include "router/served_model.h"
#include "router/usage_counter.h"
#include "text/reasoning_splitter.h"
#include "text/stop_strings.h"
#include "text/stream_decoder.h"
#include "text/tool_call_parser.h"

namespace conclave {

// Tokens -> characters -> thinking and answer -> stop strings (answer only) -> tool calls.
//
// Each generated id is in exactly one delta, in order; its text may come in a later one, where a
// character, a stop string or a tool call was not complete yet. <think> and </think> are in
// thinking deltas, ids of tool calls in content deltas without text. Control tokens and the id
// that stopped generation have no text.
class ChatEvents final : public EventOutbox<v1::ChatEvent> {
 public:
  // What of `model` is used must outlive this.
  ChatEvents(const ServedModel& model, RequestObserver<v1::ChatEvent>* observer);

  void Start(const PreparedRequest& prepared, const v1::Started& started) override;
  bool Push(const v1::TokenEvent& event) override;
  v1::Finished Finish(v1::ChatFinishReason reason, uint32_t failovers) override;
  bool any_answer() const override { return state_->usage.any_answer(); }
  std::string TakeAnswer() override { return std::move(answer_); }

 private:
  struct State {
    State(const ServedModel& model, const PreparedRequest& prepared);
    StreamDecoder decoder;
    ReasoningSplitter splitter;
    StopStrings stops;
    UsageCounter usage;
  };
  enum class Kind { kThinking, kContent };

  void PushId(const v1::TokenEvent& event, int index);
  void AddAnswer(absl::string_view text);
  void AddContent(absl::string_view text);
  void AddContentText(absl::string_view text);
  void AddToolEvents(const std::vector<ToolCallEvent>& events);
  v1::TextDelta* Delta(Kind kind);

  const ServedModel& model_;
  std::unique_ptr<State> state_;
  std::unique_ptr<ToolCallParser> tool_calls_;  // null: the request has no tools
  bool keeps_answer_ = false;
  std::string answer_;
  size_t first_event_ = 0;  // of the push under way: only its own deltas are added to
};

}  // namespace conclave
