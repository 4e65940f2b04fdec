#pragma once

#include <cstdint>

#include "proto/conclave/v1/inference.pb.h"
#include "proto/conclave/v1/worker.pb.h"
#include "router/prompt_builder.h"

namespace conclave {

// Counts one request's tokens. thinking_tokens is the worker's count (used + forced); an answer
// token is one outside thinking that is not of the early-stop text; <think> and </think> are
// neither, nor are tool calls inside thinking. Of the answer's tokens, those from <tool_call> to
// </tool_call> count as tool call tokens too where the request has tools.
class UsageCounter {
 public:
  explicit UsageCounter(const PreparedRequest& prepared);

  // Once per event, before its ids.
  void BeginEvent(const v1::TokenEvent& event);
  // The next id of that event.
  void AddId(uint32_t id);

  // Whether an answer token was counted.
  bool any_answer() const { return answer_tokens_ > 0; }
  v1::Usage usage() const;
  // Mode and source as resolved; the rest as the worker's automaton stands.
  v1::ThinkingReport report() const;

 private:
  uint32_t think_id_, end_think_id_;
  uint32_t tool_call_id_, end_tool_call_id_;  // 0: calls are not looked for
  uint32_t prefix_left_;                      // ids of an answer's prefix, until they were forced
  bool enabled_;
  bool inside_;
  uint32_t prompt_tokens_;
  uint32_t cached_prompt_tokens_ = 0;
  uint32_t completion_tokens_ = 0;
  uint32_t answer_tokens_ = 0;
  uint32_t tool_call_tokens_ = 0;
  bool in_tool_call_ = false;
  uint32_t early_stop_left_ = 0;  // of the event: its first ids are the early-stop text
  v1::ThinkingReport report_;
};

}  // namespace conclave
