#include "router/router_metrics.h"

#include "absl/strings/ascii.h"
#include "rpc/thinking_names.h"

namespace conclave {
namespace {

// Tenths, so that "stopped by the budget" (exactly 1) is its own bucket.
const prometheus::Histogram::BucketBoundaries kRatioBuckets = {0.1, 0.2, 0.3, 0.4,   0.5, 0.6,
                                                               0.7, 0.8, 0.9, 0.999, 1.0};

}  // namespace

std::string OutcomeLabel(absl::StatusCode code) {
  return absl::AsciiStrToLower(absl::StatusCodeToString(code));
}

RouterMetrics::RouterMetrics(Metrics* metrics)
    : metrics_(metrics),
      failovers_(metrics->Counter("conclave_router_failovers_total",
                                  "Requests moved to another worker while in flight")),
      drains_(metrics->Counter("conclave_router_drains_total", "Drains begun")),
      inflight_(metrics->Gauge("conclave_router_inflight", "Requests admitted and not finished")),
      waiting_(
          metrics->Gauge("conclave_router_waiting", "Requests admitted that no worker holds now")),
      workers_(metrics->Gauge("conclave_router_workers", "Workers the router knows of")),
      workers_up_(metrics->Gauge("conclave_router_workers_up", "Workers that are ready")),
      workers_with_other_model_(
          metrics->Gauge("conclave_router_workers_with_other_model",
                         "Workers not used because they loaded another checkpoint")),
      adaptive_budget_scale_(
          metrics->Gauge("conclave_router_adaptive_budget_scale",
                         "What new thinking budgets above the floor are multiplied with")),
      thinking_tokens_(metrics->Histogram("conclave_router_thinking_tokens",
                                          "Thinking tokens of a request that thought",
                                          TokenBuckets())),
      budget_used_ratio_(metrics->Histogram("conclave_router_thinking_budget_used_ratio",
                                            "Share of its thinking budget a request used",
                                            kRatioBuckets)),
      first_token_(metrics->Histogram("conclave_router_time_to_first_token_seconds",
                                      "From the request's arrival to its first token",
                                      LatencyBuckets())),
      inter_token_(metrics->Histogram("conclave_router_inter_token_seconds",
                                      "Between two token events of a request", LatencyBuckets())) {
  // From the start, so that the first of each counts as an increase.
  for (const absl::string_view mode : {"thinking", "off", "raw"}) {
    CountTokens(v1::Usage(), 0, mode);
    FirstAnswer(mode);
  }
  for (const v1::ThinkingEnd end :
       {v1::THINKING_END_NONE, v1::THINKING_END_NATURAL, v1::THINKING_END_BUDGET,
        v1::THINKING_END_ANSWER_RESERVE, v1::THINKING_END_CLIENT}) {
    ThinkingEnded(end);
  }
}

void RouterMetrics::CountRequest(absl::string_view method, absl::StatusCode outcome) {
  metrics_
      ->Counter("conclave_router_requests_total", "Requests by method and outcome",
                {{"method", std::string(method)}, {"outcome", OutcomeLabel(outcome)}})
      .Increment();
}

void RouterMetrics::CountPrefixRoute(PrefixRoute route) {
  const char* label = route == PrefixRoute::kCached     ? "cached"
                      : route == PrefixRoute::kBalanced ? "balanced"
                                                        : "unknown";
  metrics_
      ->Counter("conclave_router_prefix_routes_total",
                "Requests sent to a worker: to one that has seen the prompt's beginning (cached), "
                "to another for balance, or unknown",
                {{"route", label}})
      .Increment();
}

void RouterMetrics::CountPrefillAhead(PrefillAheadOutcome outcome) {
  const char* label = outcome == PrefillAheadOutcome::kDone      ? "done"
                      : outcome == PrefillAheadOutcome::kDropped ? "dropped"
                                                                 : "busy";
  metrics_
      ->Counter("conclave_router_prefill_ahead_total",
                "Answered turns whose next prompt was to be computed ahead, by what became of it",
                {{"outcome", label}})
      .Increment();
}

void RouterMetrics::CountTokens(const v1::Usage& usage, uint32_t forced, absl::string_view mode) {
  const auto count = [&](absl::string_view name, absl::string_view help, uint32_t tokens) {
    metrics_->Counter(name, help, {{"mode", std::string(mode)}}).Increment(tokens);
  };
  count("conclave_router_prompt_tokens_total", "Tokens of prompts", usage.prompt_tokens());
  count("conclave_router_cached_prompt_tokens_total", "Tokens of prompts found in a prefix cache",
        usage.cached_prompt_tokens());
  count("conclave_router_thinking_tokens_total", "Tokens inside thinking, forced ones among them",
        usage.thinking_tokens());
  count("conclave_router_forced_tokens_total", "Tokens of early-stop texts", forced);
  count("conclave_router_answer_tokens_total", "Tokens of answers", usage.answer_tokens());
  count("conclave_router_tool_call_tokens_total", "Tokens of tool calls, which are answers' too",
        usage.tool_call_tokens());
}

prometheus::Counter& RouterMetrics::ThinkingEnded(v1::ThinkingEnd end) {
  return metrics_->Counter(
      "conclave_router_thinking_ended_total",
      "Requests that thought, by what ended it (none: still thinking at the end)",
      {{"ended_by", std::string(ThinkingEndWord(end))}});
}

prometheus::Histogram& RouterMetrics::FirstAnswer(absl::string_view mode) {
  return metrics_->Histogram("conclave_router_time_to_first_answer_token_seconds",
                             "From the request's arrival to the first token after thinking",
                             LatencyBuckets(), {{"mode", std::string(mode)}});
}

void RouterMetrics::CountFinished(const v1::Finished& finished) {
  const v1::Usage& usage = finished.usage();
  const v1::ThinkingReport& report = finished.thinking();
  CountTokens(usage, report.forced(), ThinkingModeWord(report.mode()));
  num_thinking_tokens_ += usage.thinking_tokens();
  num_answer_tokens_ += usage.answer_tokens();
  if (usage.thinking_tokens() == 0 && report.ended_by() == v1::THINKING_END_NONE) return;
  ThinkingEnded(report.ended_by()).Increment();
  thinking_tokens_.Observe(usage.thinking_tokens());
  if (report.budget() > 0) {
    budget_used_ratio_.Observe(static_cast<double>(report.used()) / report.budget());
  }
}

void RouterMetrics::ObserveFirstToken(absl::Duration since_start) {
  first_token_.Observe(absl::ToDoubleSeconds(since_start));
}

void RouterMetrics::ObserveFirstAnswerToken(const v1::ThinkingReport& report,
                                            absl::Duration since_start) {
  FirstAnswer(ThinkingModeWord(report.mode())).Observe(absl::ToDoubleSeconds(since_start));
}

void RouterMetrics::ObserveInterToken(absl::Duration gap) {
  inter_token_.Observe(absl::ToDoubleSeconds(gap));
}

}  // namespace conclave
