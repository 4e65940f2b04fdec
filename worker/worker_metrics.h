#pragma once

#include "common/metrics.h"
#include "worker/thinking_automaton.h"

namespace conclave {

// What a worker counts. References live as long as the Metrics they were made from.
class WorkerMetrics {
 public:
  explicit WorkerMetrics(Metrics& metrics);

  prometheus::Counter& prompt_tokens;
  prometheus::Counter& cached_prompt_tokens;
  prometheus::Counter& background_tokens;
  prometheus::Counter& generated_tokens;
  prometheus::Counter& thinking_tokens;
  prometheus::Counter& forced_tokens;
  prometheus::Counter& preemptions;
  prometheus::Counter& steps;
  prometheus::Counter& split_steps;
  prometheus::Gauge& running;
  prometheus::Gauge& waiting;
  prometheus::Gauge& kv_blocks_used;
  prometheus::Gauge& kv_blocks_total;
  prometheus::Gauge& kv_blocks_cached;
  prometheus::Counter& prefix_cache_queried;
  prometheus::Counter& prefix_cache_hit;
  prometheus::Counter& prefix_cache_evicted;
  prometheus::Histogram& queue_wait_seconds;
  prometheus::Histogram& decode_step_seconds;   // steps without any prompt token
  prometheus::Histogram& prefill_step_seconds;  // the others
  prometheus::Counter& attention_seconds;
  prometheus::Counter& mlp_seconds;
  prometheus::Counter& experts_seconds;
  prometheus::Counter& sampling_seconds;

  prometheus::Counter& Requests(const char* outcome);  // ok, cancelled, failed
  prometheus::Counter& ThinkingEnded(ThinkingEndedBy reason);

 private:
  Metrics& metrics_;
};

}  // namespace conclave
