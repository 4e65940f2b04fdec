#include "router/usage_counter.h"

namespace conclave {

UsageCounter::UsageCounter(const PreparedRequest& prepared)
    : think_id_(prepared.tokens.thinking().start_id()),
      end_think_id_(prepared.tokens.thinking().end_id()),
      enabled_(prepared.tokens.thinking().enabled()),
      inside_(enabled_ && prepared.tokens.thinking().starts_inside()),
      prompt_tokens_(prepared.tokens.prompt_ids_size()),
      report_(prepared.thinking) {}

void UsageCounter::BeginEvent(const v1::TokenEvent& event) {
  if (event.started()) cached_prompt_tokens_ = event.cached_prompt_tokens();
  forced_left_ = event.num_forced();
  if (!enabled_ || !event.has_thinking()) return;
  report_.set_budget(event.thinking().budget());
  report_.set_used(event.thinking().used());
  report_.set_forced(event.thinking().forced());
  report_.set_ended_by(event.thinking().ended_by());
}

void UsageCounter::AddId(uint32_t id) {
  ++completion_tokens_;
  const bool forced = forced_left_ > 0;
  if (forced) --forced_left_;
  if (enabled_ && inside_ && id == end_think_id_) {
    inside_ = false;
  } else if (enabled_ && !inside_ && id == think_id_) {
    inside_ = true;
  } else if (!inside_ && !forced) {
    ++answer_tokens_;
  }
}

v1::Usage UsageCounter::usage() const {
  v1::Usage usage;
  usage.set_prompt_tokens(prompt_tokens_);
  usage.set_cached_prompt_tokens(cached_prompt_tokens_);
  usage.set_completion_tokens(completion_tokens_);
  usage.set_thinking_tokens(report_.used() + report_.forced());
  usage.set_answer_tokens(answer_tokens_);
  return usage;
}

v1::ThinkingReport UsageCounter::report() const { return report_; }

}  // namespace conclave
