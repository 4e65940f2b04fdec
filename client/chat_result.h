#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"
#include "proto/conclave/v1/inference.pb.h"

namespace conclave {

// A chat's answer, put together from its events.
class ChatResult {
 public:
  // Internal if the event breaks the contract: a call's index that skips one, or an empty event.
  absl::Status Add(const v1::ChatEvent& event);

  const v1::Started& started() const { return started_; }
  const v1::Finished& finished() const { return finished_; }
  bool is_finished() const { return is_finished_; }
  bool called_tools() const { return !tool_calls_.empty(); }
  const std::vector<v1::ToolCall>& tool_calls() const { return tool_calls_; }

  // The answer as an assistant's turn, to be sent back with the next question.
  v1::ChatMessage AsMessage() const;

  // {"thinking", "content", "tool_calls" (only if there are any), "finish_reason", "usage",
  // "thinking_report", "seed", "failovers"}.
  nlohmann::ordered_json ToJson() const;

 private:
  v1::Started started_;
  std::string thinking_, content_;
  std::vector<v1::ToolCall> tool_calls_;
  v1::Finished finished_;
  bool is_finished_ = false;
};

nlohmann::ordered_json UsageToJson(const v1::Usage& usage);
// "stop", "length", "tool_calls" or "cancelled".
std::string FinishReasonName(v1::ChatFinishReason reason);

// One line of JSON; bytes that are not UTF-8 come out as U+FFFD.
std::string ToLine(const nlohmann::ordered_json& value);

}  // namespace conclave
