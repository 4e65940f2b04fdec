#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/conclave/v1/inference.pb.h"
#include "router/openai_request.h"

namespace conclave {

struct OpenAiCompletionRequest {
  std::vector<v1::GenerateRequest> prompts;  // at least one; they differ in the prompt alone
  OpenAiAnswerOptions answer;
  bool echo = false;  // the text begins with the prompt's

  // prompts times n, at most limits::kMaxHttpChoices: n choices of the first prompt come first.
  int num_choices() const { return static_cast<int>(prompts.size()) * answer.n; }
  // What to ask the engine for choice i; seed, if one was given, plus i modulo n.
  v1::GenerateRequest Choice(int i) const;
};

// The body of /v1/completions. prompt: a string, a list of ids, or a list of several of either.
// max_tokens is 16 if not given, as OpenAI has it; logprobs is the number of alternatives, 0..20.
// Thinking budget under each name of openai_thinking.h; it bounds any <think> in the text. A raw
// prompt has no switch, so that enable_thinking is an error. Errors as of ParseOpenAiChat; also for
// suffix, best_of other than n, and logprobs together with echo.
absl::StatusOr<OpenAiCompletionRequest> ParseOpenAiCompletion(absl::string_view body);

}  // namespace conclave
