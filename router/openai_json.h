#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "proto/conclave/v1/inference.pb.h"
#include "router/openai_stream.h"

namespace conclave {

// Pieces of OpenAI's answers that chat and completion share.
using OpenAiJson = nlohmann::ordered_json;

// Compact; bytes that are no UTF-8 become U+FFFD.
std::string DumpJson(const OpenAiJson& json);
// "data: <json>\n\n".
std::string SseFrame(absl::string_view json);

// {id, object, created, model, system_fingerprint}.
OpenAiJson ResponseHead(const OpenAiResponseInfo& info, absl::string_view object);

// "stop", "length", "tool_calls".
std::string FinishReason(v1::ChatFinishReason reason);
// {mode, source, budget, used, forced, ended_by}.
OpenAiJson ThinkingJson(const v1::ThinkingReport& report);
// JSON has no infinity: a token that could not be chosen has OpenAI's -9999.
double LogprobNumber(float logprob);

// The usage of a whole response: prompts once, what was generated of every choice.
class UsageSum {
 public:
  // num_choices_per_prompt: choice i belongs to prompt i / num_choices_per_prompt.
  explicit UsageSum(int num_choices_per_prompt) : per_prompt_(num_choices_per_prompt) {}
  void Add(int choice, const v1::Usage& usage);
  OpenAiJson ToJson() const;

 private:
  const int per_prompt_;
  int64_t prompt_tokens_ = 0;
  int64_t cached_tokens_ = 0;
  int64_t completion_tokens_ = 0;
  int64_t reasoning_tokens_ = 0;
};

// The frames of a stream: what all chunks share is written once.
class ChunkWriter {
 public:
  ChunkWriter(const OpenAiResponseInfo& info, absl::string_view object, bool include_usage);

  std::string Chunk(const OpenAiJson& choice) const;
  // The usage chunk, if it is asked for, and the end of the stream.
  std::string End(const UsageSum& usage) const;

 private:
  const bool include_usage_;
  std::string before_;  // up to the choice
  std::string after_;
};

}  // namespace conclave
