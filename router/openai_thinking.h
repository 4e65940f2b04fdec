#pragma once

#include "absl/status/statusor.h"
#include "proto/conclave/v1/inference.pb.h"
#include "router/openai_fields.h"

namespace conclave {

// How thinking is asked for, under every name clients have for it. Each is looked for in the body
// and in a nested "extra_body".
// - Switch: enable_thinking, chat_template_kwargs.enable_thinking, reasoning.enabled (booleans
//   only), thinking.type ("enabled", "disabled"), and an effort of "none" (off).
// - Budget in tokens, -1 for no limit: thinking_budget, thinking_token_budget,
//   thinking_budget_tokens, nvext.max_thinking_tokens, custom_params.thinking_budget,
//   chat_template_kwargs.thinking_budget, thinking.budget_tokens, reasoning.max_tokens.
// - Effort: reasoning_effort, reasoning.effort. minimal is a budget of 256, low 1024, medium 4096,
//   high 16384, xhigh and max -1.
// - answer_reserve (tokens of max_tokens kept for the answer) and early_stop_text (must hold
//   </think>): our own.
// Several names may be given if they agree; INVALID_ARGUMENT that names both with their values if
// they do not, and if thinking is switched on with a budget of 0. Switched off, a budget is fine:
// the switch wins.
absl::StatusOr<v1::ThinkingOptions> ReadThinking(const OpenAiFields& body);

}  // namespace conclave
