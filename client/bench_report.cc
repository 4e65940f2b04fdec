// The two forms of a BenchSummary: JSON and text.

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/bench_summary.h"
#include "client/terminal_plot.h"

namespace conclave {
namespace {

using nlohmann::ordered_json;

constexpr int kPlotWidth = 50;
constexpr size_t kMaxTimelineBars = 20;

template <typename Value>
ordered_json OrNull(const std::optional<Value>& value) {
  return value.has_value() ? ordered_json(*value) : ordered_json(nullptr);
}

double PerSecond(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

ordered_json OptionsJson(const BenchOptions& options) {
  return {{"num_requests", options.num_requests},
          {"concurrency", options.Concurrency()},
          {"rate", OrNull(options.rate)},
          {"input_len", options.input_len},
          {"output_len", options.output_len},
          {"range_ratio", options.range_ratio},
          {"shared_prefix_len", options.shared_prefix_len},
          {"think_share", OrNull(options.think_share)},
          {"thinking_budget", OrNull(options.thinking_budget)},
          {"prompts", options.prompts_file},
          {"respect_eos", options.respect_eos},
          {"temperature", OrNull(options.temperature)},
          {"seed", options.seed},
          {"warmup", options.warmup}};
}

ordered_json GoodputJson(const BenchOptions& options, const BenchSummary& summary) {
  if (!options.slo.any()) return nullptr;
  const int64_t all = summary.completed + summary.failed;
  return {{"slo_ttft_ms", OrNull(options.slo.ttft_ms)},
          {"slo_ttfat_ms", OrNull(options.slo.ttfat_ms)},
          {"slo_itl_ms", OrNull(options.slo.itl_ms)},
          {"requests", summary.good},
          {"share", all > 0 ? static_cast<double>(summary.good) / static_cast<double>(all) : 0},
          {"requests_per_second", PerSecond(summary.good, summary.seconds)}};
}

std::string Headline(const BenchOptions& options, const std::string& model) {
  std::string text =
      absl::StrCat("model ", model, ", ", options.num_requests, " requests, ",
                   options.rate ? absl::StrFormat("%g arrivals/s (Poisson), at most %d in flight",
                                                  *options.rate, options.Concurrency())
                                : absl::StrCat(options.Concurrency(), " in flight"));
  if (options.prompts_file.empty()) {
    absl::StrAppend(&text, ", prompts of ", options.input_len, " tokens");
  } else {
    absl::StrAppend(&text, ", prompts from ", options.prompts_file);
  }
  absl::StrAppend(&text, options.respect_eos ? ", outputs of at most " : ", outputs of ",
                  options.output_len);
  if (options.range_ratio > 0) absl::StrAppendFormat(&text, " (+-%g)", options.range_ratio);
  if (options.think_share) absl::StrAppendFormat(&text, ", %g of them think", *options.think_share);
  return text + "\n";
}

std::string Outcome(const BenchSummary& summary) {
  std::string text =
      absl::StrFormat("%s%d finished, %d failed", summary.stopped ? "interrupted: " : "",
                      summary.completed, summary.failed);
  if (summary.cut_short > 0) absl::StrAppend(&text, ", ", summary.cut_short, " cut short");
  absl::StrAppendFormat(&text, ", in %.2f s, %d in flight at most\n", summary.seconds,
                        summary.peak_in_flight);
  for (const auto& [code, count] : summary.errors) {
    absl::StrAppend(&text, "  ", count, " x ", code, ": ", summary.first_error.at(code), "\n");
  }
  return text;
}

std::string Rates(const BenchOptions& options, const BenchSummary& summary) {
  const double seconds = summary.seconds;
  std::string text = absl::StrFormat(
      "output tokens/s %.1f, with the prompts' %.1f, requests/s %.2f\n", summary.OutputRate(),
      PerSecond(summary.output_tokens + summary.prompt_tokens, seconds),
      PerSecond(summary.completed, seconds));
  absl::StrAppendFormat(&text, "tokens: %d of prompts (%d cached), %d of output",
                        summary.prompt_tokens, summary.cached_prompt_tokens, summary.output_tokens);
  if (summary.thinking_tokens > 0) {
    absl::StrAppend(
        &text, ", ", summary.thinking_tokens, " of thinking; thinking ended by ",
        absl::StrJoin(summary.thinking_ended_by, ", ", [](std::string* out, const auto& entry) {
          absl::StrAppend(out, entry.first, " ", entry.second);
        }));
  }
  absl::StrAppend(&text, "\n");
  if (summary.failovers > 0) absl::StrAppend(&text, summary.failovers, " failovers\n");
  if (options.slo.any()) {
    const ordered_json goodput = GoodputJson(options, summary);
    absl::StrAppendFormat(&text, "goodput: %d of %d requests within the SLO, %.2f/s\n",
                          summary.good, summary.completed + summary.failed,
                          goodput["requests_per_second"].get<double>());
  }
  return text;
}

std::string LatencyTable(const BenchOptions& options, const BenchSummary& summary) {
  std::string text = absl::StrFormat("%-28s %10s %10s %10s %10s %10s\n", "latency, ms", "mean",
                                     "p50", "p90", "p99", "max");
  const auto row = [&text](const char* name, const Distribution& values) {
    if (values.values().empty()) {
      absl::StrAppendFormat(&text, "%-28s %10s\n", name, "none");
      return;
    }
    absl::StrAppendFormat(&text, "%-28s %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, values.Mean(),
                          values.Quantile(0.5), values.Quantile(0.9), values.Quantile(0.99),
                          values.Quantile(1));
  };
  row("time to first token", summary.ttft);
  if (options.IsChat()) row("time to first answer token", summary.ttfat);
  row("inter-token latency", summary.itl);
  row("time per output token", summary.tpot);
  row("whole request", summary.e2e);
  if (options.rate) row("waited for room to be sent", summary.queue);
  return text;
}

std::string PlotTimeline(const std::vector<double>& tokens_per_second) {
  // Longer runs have several seconds a bar.
  const size_t step = (tokens_per_second.size() + kMaxTimelineBars - 1) / kMaxTimelineBars;
  std::vector<PlotBar> bars;
  for (size_t first = 0; first < tokens_per_second.size(); first += step) {
    const size_t end = std::min(first + step, tokens_per_second.size());
    double sum = 0;
    for (size_t i = first; i < end; ++i) sum += tokens_per_second[i];
    bars.push_back({absl::StrCat(first, " s"), std::round(sum / static_cast<double>(end - first))});
  }
  return PlotBars("output tokens/s, from second", bars, kPlotWidth);
}

std::string Plot(const std::string& name, const BenchSummary& summary) {
  const auto histogram = [](const char* title, const Distribution& values) {
    return PlotHistogram(title, values.values(), kPlotWidth);
  };
  if (name == "ttft") return histogram("requests by time to first token, ms", summary.ttft);
  if (name == "ttfat")
    return histogram("requests by time to first answer token, ms", summary.ttfat);
  if (name == "itl") return histogram("tokens by inter-token latency, ms", summary.itl);
  if (name == "e2e") return histogram("requests by whole time, ms", summary.e2e);
  if (name == "throughput") return PlotTimeline(summary.tokens_per_second);
  return "";
}

}  // namespace

ordered_json BenchJson(const BenchOptions& options, const std::string& model,
                       const BenchSummary& summary) {
  const double seconds = summary.seconds;
  return {{"model", model},
          {"endpoint", options.router.endpoint},
          {"options", OptionsJson(options)},
          {"interrupted", summary.stopped},
          {"completed", summary.completed},
          {"failed", summary.failed},
          {"cut_short", summary.cut_short},
          {"errors", ordered_json(summary.errors)},
          {"first_error", ordered_json(summary.first_error)},
          {"duration_seconds", seconds},
          {"peak_in_flight", summary.peak_in_flight},
          {"requests_per_second", PerSecond(summary.completed, seconds)},
          {"output_tokens_per_second", summary.OutputRate()},
          {"total_tokens_per_second",
           PerSecond(summary.output_tokens + summary.prompt_tokens, seconds)},
          {"prompt_tokens", summary.prompt_tokens},
          {"cached_prompt_tokens", summary.cached_prompt_tokens},
          {"output_tokens", summary.output_tokens},
          {"thinking_tokens", summary.thinking_tokens},
          {"answer_tokens", summary.answer_tokens},
          {"thinking_ended_by", ordered_json(summary.thinking_ended_by)},
          {"failovers", summary.failovers},
          {"ttft_ms", summary.ttft.ToJson()},
          {"ttfat_ms", summary.ttfat.ToJson()},
          {"itl_ms", summary.itl.ToJson()},
          {"tpot_ms", summary.tpot.ToJson()},
          {"e2e_ms", summary.e2e.ToJson()},
          {"queue_ms", summary.queue.ToJson()},
          {"goodput", GoodputJson(options, summary)},
          {"tokens_per_second_by_second", summary.tokens_per_second}};
}

std::string BenchText(const BenchOptions& options, const std::string& model,
                      const BenchSummary& summary) {
  std::string text = absl::StrCat(Headline(options, model), Outcome(summary));
  if (summary.output_tokens == 0) return text;
  absl::StrAppend(&text, Rates(options, summary), "\n", LatencyTable(options, summary));
  for (const std::string& name : options.plots) {
    const std::string plot = Plot(name, summary);
    if (!plot.empty()) absl::StrAppend(&text, "\n", plot);
  }
  return text;
}

}  // namespace conclave
