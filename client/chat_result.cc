#include "client/chat_result.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "rpc/thinking_names.h"

namespace conclave {
absl::Status ChatResult::Add(const v1::ChatEvent& event) {
  switch (event.event_case()) {
    case v1::ChatEvent::kStarted:
      started_ = event.started();
      break;
    case v1::ChatEvent::kThinkingDelta:
      thinking_ += event.thinking_delta().text();
      break;
    case v1::ChatEvent::kThinkingDone:
      break;  // `finished` repeats it
    case v1::ChatEvent::kContentDelta:
      content_ += event.content_delta().text();
      break;
    case v1::ChatEvent::kToolCallDelta: {
      const v1::ToolCallDelta& delta = event.tool_call_delta();
      if (delta.index() > tool_calls_.size()) {
        return absl::InternalError(absl::StrCat("the router sent tool call ", delta.index(),
                                                ", want 0..", tool_calls_.size()));
      }
      if (delta.index() == tool_calls_.size()) tool_calls_.emplace_back();
      v1::ToolCall& call = tool_calls_[delta.index()];
      if (!delta.id().empty()) call.set_id(delta.id());
      if (!delta.name().empty()) call.set_name(delta.name());
      call.mutable_arguments()->append(delta.arguments());
      break;
    }
    case v1::ChatEvent::kFinished:
      finished_ = event.finished();
      is_finished_ = true;
      break;
    case v1::ChatEvent::EVENT_NOT_SET:
      return absl::InternalError("the router sent an event of an unknown kind");
  }
  return absl::OkStatus();
}

v1::ChatMessage ChatResult::AsMessage() const {
  v1::ChatMessage message;
  message.set_role("assistant");
  message.set_content(content_);
  message.set_reasoning_content(thinking_);
  for (const v1::ToolCall& call : tool_calls_) *message.add_tool_calls() = call;
  return message;
}

nlohmann::ordered_json ChatResult::ToJson() const {
  nlohmann::ordered_json json;
  json["thinking"] = thinking_;
  json["content"] = content_;
  for (const v1::ToolCall& call : tool_calls_) {
    json["tool_calls"].push_back(
        {{"id", call.id()},
         {"type", "function"},
         {"function", {{"name", call.name()}, {"arguments", call.arguments()}}}});
  }
  json["finish_reason"] = FinishReasonName(finished_.reason());
  json["usage"] = UsageToJson(finished_.usage());
  const v1::ThinkingReport& report = finished_.thinking();
  json["thinking_report"] = {{"mode", std::string(ThinkingModeWord(report.mode()))},
                             {"source", std::string(ThinkingSourceWord(report.source()))},
                             {"budget", report.budget()},
                             {"used", report.used()},
                             {"forced", report.forced()},
                             {"ended_by", std::string(ThinkingEndWord(report.ended_by()))}};
  json["seed"] = started_.seed();
  json["failovers"] = finished_.failovers();
  return json;
}

nlohmann::ordered_json UsageToJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"cached_prompt_tokens", usage.cached_prompt_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"thinking_tokens", usage.thinking_tokens()},
          {"answer_tokens", usage.answer_tokens()}};
}

std::string FinishReasonName(v1::ChatFinishReason reason) {
  switch (reason) {
    case v1::CHAT_FINISH_REASON_STOP:
      return "stop";
    case v1::CHAT_FINISH_REASON_LENGTH:
      return "length";
    case v1::CHAT_FINISH_REASON_TOOL_CALLS:
      return "tool_calls";
    case v1::CHAT_FINISH_REASON_CANCELLED:
      return "cancelled";
    default:
      return "unspecified";
  }
}

std::string ToLine(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace conclave
