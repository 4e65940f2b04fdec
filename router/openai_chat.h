#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/conclave/v1/inference.pb.h"
#include "router/openai_request.h"

namespace conclave {

struct OpenAiChatRequest {
  v1::ChatRequest chat;  // request_id is empty
  OpenAiAnswerOptions answer;

  int num_choices() const { return answer.n; }
  // What to ask the engine for choice i: `chat`, its seed (if one was given) plus i.
  v1::ChatRequest Choice(int i) const;
};

// The body of /v1/chat/completions as OpenAI's, Qwen's and other servers' clients send it.
// - Unknown keys are ignored; null is as not given.
// - content: a string, a list of text parts, null or missing. Role developer is system.
// - max_tokens and max_completion_tokens mean the same: thinking and answer together.
// - Thinking: see openai_thinking.h. "thinking_report": true puts a report into each choice;
//   "include_reasoning": false leaves reasoning out of the answer.
// - tool_choice: v1::ToolChoice; the engine keeps the tools from the model or begins the call for
//   it, and checks that the tools have the function named.
// - parallel_tool_calls false: only the first call of an answer is returned.
// INVALID_ARGUMENT, the message beginning with the field's path: wrong types, conflicting values
// (both named), what does not exist here (response_format other than text, functions, ...). What
// the engine checks itself (ranges, bounds, the model's name) is not checked here.
absl::StatusOr<OpenAiChatRequest> ParseOpenAiChat(absl::string_view body);

}  // namespace conclave
