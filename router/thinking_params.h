#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/conclave/v1/inference.pb.h"
#include "proto/conclave/v1/worker.pb.h"
#include "router/served_model.h"

namespace conclave {

// Qwen3's own words for ending thinking early. Source: QwenLM/Qwen3, quickstart.md.
extern const char kDefaultEarlyStopText[];
// What ends thinking where max_tokens has no room for words.
extern const char kShortEarlyStopText[];

struct ThinkingPlan {
  bool expected = false;       // the mode is thinking: room for an answer is owed
  bool starts_inside = false;  // the prompt ends inside thinking
  std::vector<uint32_t> answer_prefix_ids;
};

// Fills the automaton's parameters; tokens->max_tokens is set. Leaves them disabled if the
// vocabulary has no <think>.
// - early_stop_text unset is kDefaultEarlyStopText, or the short one if max_tokens is below four
//   times its length.
// - answer_reserve unset is a quarter of what max_tokens leaves beside the text, 1..256.
// Errors: INVALID_ARGUMENT (budget, early_stop_text; max_tokens that hold no answer beside the
// text and the reserve).
absl::Status FillThinking(const ServedModel& model, const v1::ThinkingOptions& options,
                          const ThinkingPlan& plan, v1::TokenRequest* tokens);

// INVALID_ARGUMENT below -1.
absl::Status CheckBudget(int64_t budget);

// What the answer is made to begin with so that it is a call: "<tool_call>\n{"name": "", up to the
// name's place for kRequired, "<tool_call>\n{"name": "f", "arguments":" for kNamed; empty for the
// others. No trailing space: tokenizers join it with what follows.
absl::StatusOr<std::vector<uint32_t>> AnswerPrefix(const ServedModel& model,
                                                   const v1::ToolChoice& choice);

}  // namespace conclave
