#include "router/chat_events.h"

#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"

namespace conclave {
namespace {

// Unique within a conversation too, for clients send ids back with the results.
std::string MakeToolCallId() {
  return absl::StrCat("call_",
                      absl::Hex(absl::Uniform<uint64_t>(absl::BitGen()), absl::kZeroPad16));
}

}  // namespace

ChatEvents::State::State(const ServedModel& model, const PreparedRequest& prepared)
    : decoder(&model.vocabulary(), /*skip_special=*/true),
      splitter(model.vocabulary(), prepared.tokens.thinking().starts_inside()),
      stops(prepared.stop),
      usage(prepared) {}

ChatEvents::ChatEvents(const ServedModel& model, RequestObserver<v1::ChatEvent>* observer)
    : EventOutbox(observer), model_(model) {}

void ChatEvents::Start(const PreparedRequest& prepared, const v1::Started& started) {
  state_ = std::make_unique<State>(model_, prepared);
  keeps_answer_ = prepared.conversation.has_value();
  if (prepared.parse_tool_calls) tool_calls_ = std::make_unique<ToolCallParser>();
  *events().emplace_back().mutable_started() = started;
}

bool ChatEvents::Push(const v1::TokenEvent& event) {
  first_event_ = events().size();
  state_->usage.BeginEvent(event);
  for (int i = 0; i < event.ids_size() && !state_->stops.stopped(); ++i) PushId(event, i);
  return state_->stops.stopped();
}

void ChatEvents::PushId(const v1::TokenEvent& event, int index) {
  const uint32_t id = event.ids(index);
  state_->usage.AddId(id);
  ReasoningSplitter& splitter = state_->splitter;
  const bool was_thinking = splitter.in_thinking();
  SplitText split;
  if (!IsStopId(event, index)) split = splitter.Push(id, state_->decoder.Push(id));

  const bool in_thinking_delta = was_thinking || split.thinking_began;
  // Text that the id completed belongs to the side the stream was on before it.
  if (!was_thinking) AddAnswer(split.answer);
  v1::TextDelta* delta = Delta(in_thinking_delta ? Kind::kThinking : Kind::kContent);
  delta->add_ids(id);
  if (index < event.logprobs_size()) *delta->add_logprobs() = event.logprobs(index);
  if (!split.thinking.empty()) delta->mutable_text()->append(split.thinking);
  if (split.thinking_ended) {
    v1::ThinkingDone* done = events().emplace_back().mutable_thinking_done();
    done->set_ended_by(event.thinking().ended_by());
    done->set_used(event.thinking().used());
    done->set_forced(event.thinking().forced());
  }
  if (was_thinking) AddAnswer(split.answer);
}

void ChatEvents::AddAnswer(absl::string_view text) {
  if (!text.empty()) AddContent(state_->stops.Push(text));
}

void ChatEvents::AddContent(absl::string_view text) {
  if (text.empty()) return;
  if (tool_calls_ != nullptr) return AddToolEvents(tool_calls_->Push(text));
  AddContentText(text);
}

void ChatEvents::AddContentText(absl::string_view text) {
  Delta(Kind::kContent)->mutable_text()->append(text.data(), text.size());
  if (keeps_answer_) answer_.append(text.data(), text.size());
}

void ChatEvents::AddToolEvents(const std::vector<ToolCallEvent>& tool_events) {
  for (const ToolCallEvent& tool_event : tool_events) {
    if (tool_event.kind == ToolCallEvent::Kind::kContent) {
      if (!tool_event.content.empty()) AddContentText(tool_event.content);
      continue;
    }
    v1::ToolCallDelta* call = events().emplace_back().mutable_tool_call_delta();
    call->set_index(tool_event.index);
    call->set_id(MakeToolCallId());
    call->set_name(tool_event.name);
    call->set_arguments(tool_event.arguments);
  }
}

v1::TextDelta* ChatEvents::Delta(Kind kind) {
  const v1::ChatEvent::EventCase wanted =
      kind == Kind::kThinking ? v1::ChatEvent::kThinkingDelta : v1::ChatEvent::kContentDelta;
  if (events().size() == first_event_ || events().back().event_case() != wanted) {
    events().emplace_back();
  }
  v1::ChatEvent& event = events().back();
  return kind == Kind::kThinking ? event.mutable_thinking_delta() : event.mutable_content_delta();
}

v1::Finished ChatEvents::Finish(v1::ChatFinishReason reason, uint32_t failovers) {
  first_event_ = events().size();
  StopStrings& stops = state_->stops;
  if (!stops.stopped()) {
    const SplitText tail = state_->splitter.Flush(state_->decoder.Flush());
    if (!tail.thinking.empty()) {
      Delta(Kind::kThinking)->mutable_text()->append(tail.thinking);
    }
    AddAnswer(tail.answer);
    if (!stops.stopped()) AddContent(stops.Flush());
  }
  if (tool_calls_ != nullptr) AddToolEvents(tool_calls_->Finish());
  // A cancelled request stays cancelled: nobody waited for the stop string.
  if (stops.stopped() && reason != v1::CHAT_FINISH_REASON_CANCELLED) {
    reason = v1::CHAT_FINISH_REASON_STOP;
  }
  if (reason == v1::CHAT_FINISH_REASON_STOP && tool_calls_ != nullptr &&
      tool_calls_->num_calls() > 0) {
    reason = v1::CHAT_FINISH_REASON_TOOL_CALLS;
  }
  v1::Finished finished;
  finished.set_reason(reason);
  *finished.mutable_usage() = state_->usage.usage();
  *finished.mutable_thinking() = state_->usage.report();
  finished.set_stop_string(stops.matched());
  finished.set_failovers(failovers);
  *events().emplace_back().mutable_finished() = finished;
  return finished;
}

}  // namespace conclave
