#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/conclave/v1/inference.pb.h"
#include "proto/conclave/v1/worker.pb.h"
#include "router/served_model.h"
#include "router/thinking_params.h"
#include "text/chat_template.h"

namespace conclave {

// A request as a worker takes it, and what of it stays here: text is the router's alone.
struct PreparedRequest {
  v1::TokenRequest tokens;      // all but the request_id
  v1::ThinkingReport thinking;  // mode, source and budget as resolved; empty for Generate
  std::vector<std::string> stop;
  bool parse_tool_calls = false;
  // Of a chat, for who wants to know how it would go on; what was rendered.
  std::optional<ChatPrompt> conversation;
};

// Validates, decides the thinking mode, renders the template, tokenizes and fills every default.
// - Mode: enable_thinking=false or budget 0, else the last soft switch, else enable_thinking=true,
//   else the server's default. A budget of 0 is "no thinking at all": the prompt is rendered with
//   enable_thinking=false, whatever enable_thinking says. Thinking-2507 cannot render that; there
//   the automaton ends thinking at once.
// - With thinking off the automaton stays on with the budget given, so that a block the model
//   opens after all is still bounded.
// - With thinking on, max_tokens must hold an answer beside what ends thinking (FillThinking).
// - A tool_choice that asks for a call forces the answer's beginning (AnswerPrefix).
// max_context: prompt and output together, in tokens.
// Errors: INVALID_ARGUMENT (a field out of range, bad UTF-8 or JSON, prompt past max_context),
// NOT_FOUND (another model's name).
absl::StatusOr<PreparedRequest> PrepareChat(const ServedModel& model,
                                            const v1::ChatRequest& request, int64_t max_context);

// The same for a raw prompt. If the last <think> or </think> in it is a <think>, generation starts
// inside thinking.
absl::StatusOr<PreparedRequest> PrepareGenerate(const ServedModel& model,
                                                const v1::GenerateRequest& request,
                                                int64_t max_context);

// Bytes a request's text has, to tell small from large before work is done on it.
size_t TextBytes(const v1::ChatRequest& request);
size_t TextBytes(const v1::GenerateRequest& request);

// InvalidArgument unless it is 1..kMaxRequestIdBytes of letters, digits and "-_.:/".
absl::Status ValidateRequestId(absl::string_view request_id);

}  // namespace conclave
