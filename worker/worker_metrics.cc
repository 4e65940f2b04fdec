#include "worker/worker_metrics.h"

namespace conclave {
namespace {

constexpr char kStepPhaseHelp[] = "Time spent in steps, by phase.";
constexpr char kStepPhase[] = "conclave_worker_step_phase_seconds_total";

const char* Name(ThinkingEndedBy reason) {
  switch (reason) {
    case ThinkingEndedBy::kNone:
      return "none";
    case ThinkingEndedBy::kNatural:
      return "natural";
    case ThinkingEndedBy::kBudget:
      return "budget";
    case ThinkingEndedBy::kAnswerReserve:
      return "answer_reserve";
    case ThinkingEndedBy::kClient:
      return "client";
  }
  return "none";
}

}  // namespace

WorkerMetrics::WorkerMetrics(Metrics& metrics)
    : prompt_tokens(metrics.Counter("conclave_worker_prompt_tokens_total",
                                    "Prompt tokens of finished prefills, recomputed ones once.")),
      cached_prompt_tokens(
          metrics.Counter("conclave_worker_cached_prompt_tokens_total",
                          "Prompt tokens found in the prefix cache when a request began.")),
      background_tokens(metrics.Counter(
          "conclave_worker_background_prefill_tokens_total",
          "Tokens computed into the prefix cache for no request, while there was none.")),
      generated_tokens(metrics.Counter("conclave_worker_generated_tokens_total",
                                       "Tokens generated, forced ones among them.")),
      thinking_tokens(metrics.Counter("conclave_worker_thinking_tokens_total",
                                      "Tokens the model chose inside thinking.")),
      forced_tokens(
          metrics.Counter("conclave_worker_forced_tokens_total", "Tokens forced to end thinking.")),
      preemptions(metrics.Counter("conclave_worker_preemptions_total",
                                  "Sequences that gave their KV blocks back and were recomputed.")),
      steps(metrics.Counter("conclave_worker_steps_total", "Forward passes.")),
      split_steps(metrics.Counter(
          "conclave_worker_split_steps_total",
          "Of the steps, those in two micro-batches: one's attention while the other's experts "
          "were at the shards.")),
      running(metrics.Gauge("conclave_worker_running_sequences", "Sequences that hold KV blocks.")),
      waiting(metrics.Gauge("conclave_worker_waiting_sequences", "Sequences in the queue.")),
      kv_blocks_used(
          metrics.Gauge("conclave_worker_kv_blocks_used", "KV blocks that sequences use.")),
      kv_blocks_total(metrics.Gauge("conclave_worker_kv_blocks", "KV blocks there are.")),
      kv_blocks_cached(metrics.Gauge("conclave_worker_kv_blocks_cached",
                                     "KV blocks that only the prefix cache holds.")),
      prefix_cache_queried(
          metrics.Counter("conclave_worker_prefix_cache_queried_blocks_total",
                          "Full KV blocks of new requests, looked up in the prefix cache.")),
      prefix_cache_hit(metrics.Counter("conclave_worker_prefix_cache_hit_blocks_total",
                                       "Of the blocks queried, those that were there.")),
      prefix_cache_evicted(metrics.Counter("conclave_worker_prefix_cache_evicted_blocks_total",
                                           "Cached KV blocks that were given to something else.")),
      queue_wait_seconds(metrics.Histogram("conclave_worker_queue_wait_seconds",
                                           "Time from arrival to the first step.",
                                           LatencyBuckets())),
      decode_step_seconds(metrics.Histogram("conclave_worker_decode_step_seconds",
                                            "Steps that hold no prompt token.", LatencyBuckets())),
      prefill_step_seconds(metrics.Histogram("conclave_worker_prefill_step_seconds",
                                             "Steps that hold prompt tokens.", LatencyBuckets())),
      attention_seconds(metrics.Counter(kStepPhase, kStepPhaseHelp, {{"phase", "attention"}})),
      mlp_seconds(metrics.Counter(kStepPhase, kStepPhaseHelp, {{"phase", "mlp"}})),
      experts_seconds(metrics.Counter(kStepPhase, kStepPhaseHelp, {{"phase", "experts"}})),
      sampling_seconds(metrics.Counter(kStepPhase, kStepPhaseHelp, {{"phase", "sampling"}})),
      metrics_(metrics) {
  for (const char* outcome : {"ok", "cancelled", "failed"}) Requests(outcome);
  for (const ThinkingEndedBy reason : {ThinkingEndedBy::kNatural, ThinkingEndedBy::kBudget,
                                       ThinkingEndedBy::kAnswerReserve, ThinkingEndedBy::kClient}) {
    ThinkingEnded(reason);
  }
}

prometheus::Counter& WorkerMetrics::Requests(const char* outcome) {
  return metrics_.Counter("conclave_worker_requests_total", "Requests finished, by outcome.",
                          {{"outcome", outcome}});
}

prometheus::Counter& WorkerMetrics::ThinkingEnded(ThinkingEndedBy reason) {
  return metrics_.Counter("conclave_worker_thinking_ended_total",
                          "Thinking blocks closed, by what ended them.",
                          {{"ended_by", Name(reason)}});
}

}  // namespace conclave
