#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/conclave/v1/inference.pb.h"
#include "router/openai_fields.h"

namespace conclave {

// What of a request is for the door, not for the engine: how the answer is written.
struct OpenAiAnswerOptions {
  int n = 1;  // choices per prompt, 1..limits::kMaxHttpChoices
  bool stream = false;
  bool include_usage = false;     // of stream_options: a last chunk with the usage
  bool thinking_report = false;   // "thinking" in every choice
  bool include_reasoning = true;  // false: reasoning is counted and not sent
  bool one_tool_call = false;     // parallel_tool_calls is false: calls after the first are dropped
  bool logprobs = false;
};

// Reads all of the above but one_tool_call and logprobs, whose names differ between endpoints.
absl::StatusOr<OpenAiAnswerOptions> ReadAnswerOptions(const OpenAiFields& body);

// Temperature, penalties, top_p, top_k (-1: all), min_p, seed (negative: two's complement) and
// logit_bias. Ranges are the engine's to check.
absl::Status ReadSampling(const OpenAiFields& body, v1::SamplingOptions* sampling);

// model, stop, stop_token_ids, ignore_eos.
absl::Status ReadCommon(const OpenAiFields& body, v1::ChatRequest* request);
absl::Status ReadCommon(const OpenAiFields& body, v1::GenerateRequest* request);

// InvalidArgument if the body asks for what no endpoint here has, as structured output: an answer
// that looks right and is not would be worse.
absl::Status RefuseUnsupported(const OpenAiFields& body);

}  // namespace conclave
