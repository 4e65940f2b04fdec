#include "router/usage_counter.h"

#include <algorithm>

namespace conclave {

UsageCounter::UsageCounter(const PreparedRequest& prepared)
    : think_id_(prepared.tokens.thinking().start_id()),
      end_think_id_(prepared.tokens.thinking().end_id()),
      tool_call_id_(prepared.parse_tool_calls ? prepared.tokens.thinking().tool_call_start_id()
                                              : 0),
      end_tool_call_id_(prepared.tokens.thinking().tool_call_end_id()),
      prefix_left_(prepared.tokens.thinking().answer_prefix_ids_size()),
      enabled_(prepared.tokens.thinking().enabled()),
      inside_(enabled_ && prepared.tokens.thinking().starts_inside()),
      prompt_tokens_(prepared.tokens.prompt_ids_size()),
      report_(prepared.thinking) {}

void UsageCounter::BeginEvent(const v1::TokenEvent& event) {
  if (event.started()) cached_prompt_tokens_ = event.cached_prompt_tokens();
  // Inside thinking, what is forced begins with the text that ends it; an answer's prefix may
  // follow. Outside, the prefix is all there is.
  early_stop_left_ = 0;
  if (event.num_forced() > 0) {
    if (inside_) early_stop_left_ = event.num_forced() - std::min(event.num_forced(), prefix_left_);
    prefix_left_ = 0;
  }
  if (!enabled_ || !event.has_thinking()) return;
  report_.set_budget(event.thinking().budget());
  report_.set_used(event.thinking().used());
  report_.set_forced(event.thinking().forced());
  report_.set_ended_by(event.thinking().ended_by());
}

void UsageCounter::AddId(uint32_t id) {
  ++completion_tokens_;
  const bool early_stop = early_stop_left_ > 0;
  if (early_stop) --early_stop_left_;
  if (enabled_ && inside_ && id == end_think_id_) {
    inside_ = false;
  } else if (enabled_ && !inside_ && id == think_id_) {
    inside_ = true;
  } else if (!inside_ && !early_stop) {
    ++answer_tokens_;
    if (tool_call_id_ != 0 && id == tool_call_id_) in_tool_call_ = true;
    if (in_tool_call_) ++tool_call_tokens_;
    if (id == end_tool_call_id_) in_tool_call_ = false;
  }
}

v1::Usage UsageCounter::usage() const {
  v1::Usage usage;
  usage.set_prompt_tokens(prompt_tokens_);
  usage.set_cached_prompt_tokens(cached_prompt_tokens_);
  usage.set_completion_tokens(completion_tokens_);
  usage.set_thinking_tokens(report_.used() + report_.forced());
  usage.set_answer_tokens(answer_tokens_);
  usage.set_tool_call_tokens(tool_call_tokens_);
  return usage;
}

v1::ThinkingReport UsageCounter::report() const { return report_; }

}  // namespace conclave
