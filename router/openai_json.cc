#include "router/openai_json.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/openai_error.h"
#include "rpc/thinking_names.h"

namespace conclave {
namespace {

constexpr char kDoneFrame[] = "data: [DONE]\n\n";
constexpr float kLeastLogprob = -9999;

}  // namespace

std::string DumpJson(const OpenAiJson& json) {
  return json.dump(-1, ' ', false, OpenAiJson::error_handler_t::replace);
}

std::string SseFrame(absl::string_view json) { return absl::StrCat("data: ", json, "\n\n"); }

std::string OpenAiErrorFrame(const absl::Status& status) {
  return SseFrame(OpenAiErrorJson(status));
}

OpenAiJson ResponseHead(const OpenAiResponseInfo& info, absl::string_view object) {
  return {{"id", info.id},
          {"object", std::string(object)},
          {"created", info.created},
          {"model", info.model},
          {"system_fingerprint",
           info.fingerprint.empty() ? OpenAiJson() : OpenAiJson(info.fingerprint)}};
}

std::string FinishReason(v1::ChatFinishReason reason) {
  switch (reason) {
    case v1::CHAT_FINISH_REASON_LENGTH:
      return "length";
    case v1::CHAT_FINISH_REASON_TOOL_CALLS:
      return "tool_calls";
    default:
      return "stop";
  }
}

OpenAiJson ThinkingJson(const v1::ThinkingReport& report) {
  return {{"mode", std::string(ThinkingModeWord(report.mode()))},
          {"source", std::string(ThinkingSourceWord(report.source()))},
          {"budget", report.budget()},
          {"requested_budget", report.requested_budget()},
          {"limited_by", std::string(BudgetLimitWord(report.limited_by()))},
          {"used", report.used()},
          {"forced", report.forced()},
          {"ended_by", std::string(ThinkingEndWord(report.ended_by()))}};
}

double LogprobNumber(float logprob) { return std::max(logprob, kLeastLogprob); }

void UsageSum::Add(int choice, const v1::Usage& usage) {
  if (choice % per_prompt_ == 0) {
    prompt_tokens_ += usage.prompt_tokens();
    cached_tokens_ += usage.cached_prompt_tokens();
  }
  completion_tokens_ += usage.completion_tokens();
  reasoning_tokens_ += usage.thinking_tokens();
}

OpenAiJson UsageSum::ToJson() const {
  return {{"prompt_tokens", prompt_tokens_},
          {"completion_tokens", completion_tokens_},
          {"total_tokens", prompt_tokens_ + completion_tokens_},
          {"prompt_tokens_details", {{"cached_tokens", cached_tokens_}}},
          {"completion_tokens_details", {{"reasoning_tokens", reasoning_tokens_}}}};
}

ChunkWriter::ChunkWriter(const OpenAiResponseInfo& info, absl::string_view object,
                         bool include_usage)
    : include_usage_(include_usage), before_(DumpJson(ResponseHead(info, object))) {
  before_.pop_back();  // the closing brace
  before_.append(",\"choices\":[");
  after_ = include_usage ? "],\"usage\":null}" : "]}";
}

std::string ChunkWriter::Chunk(const OpenAiJson& choice) const {
  return SseFrame(absl::StrCat(before_, DumpJson(choice), after_));
}

std::string ChunkWriter::End(const UsageSum& usage) const {
  if (!include_usage_) return kDoneFrame;
  return absl::StrCat(
      SseFrame(absl::StrCat(before_, "],\"usage\":", DumpJson(usage.ToJson()), "}")), kDoneFrame);
}

}  // namespace conclave
