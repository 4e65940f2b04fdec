#include "client/bench_summary.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "client/chat_result.h"
#include "rpc/thinking_names.h"

namespace conclave {
namespace {

using nlohmann::ordered_json;

double Milliseconds(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

// One value a token but the first event's: the time since the event before, shared by the ids
// that came together.
void AddInterTokenLatencies(const RequestRecord& record, std::vector<double>* itl) {
  for (size_t i = 1; i < record.tokens.size(); ++i) {
    const TokenArrival& token = record.tokens[i];
    const double gap = static_cast<double>(token.at_ns - record.tokens[i - 1].at_ns) / 1e6;
    itl->insert(itl->end(), token.num_ids, gap / token.num_ids);
  }
}

// NaN for a request whose tokens all came at once.
double TimePerOutputToken(const RequestRecord& record) {
  if (record.tokens.size() < 2) return std::numeric_limits<double>::quiet_NaN();
  const int64_t num_later = record.num_tokens() - record.tokens.front().num_ids;
  const int64_t span = record.tokens.back().at_ns - record.tokens.front().at_ns;
  return static_cast<double>(span) / 1e6 / static_cast<double>(num_later);
}

struct Latencies {
  std::vector<double> ttft, ttfat, itl, tpot, e2e, queue;
};

bool Within(const std::optional<double>& limit, double value) {
  return !limit.has_value() || !(value > *limit);  // NaN: there was nothing to be late with
}

// Adds a finished request; true if it kept the SLO.
bool AddRequest(const BenchSlo& slo, const RequestRecord& record, Latencies* latencies) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  double ttft = kNone, ttfat = kNone;
  if (!record.tokens.empty()) {
    ttft = Milliseconds(absl::Nanoseconds(record.tokens.front().at_ns) - record.arrival);
    latencies->ttft.push_back(ttft);
  }
  if (record.first_answer) {
    ttfat = Milliseconds(*record.first_answer - record.arrival);
    latencies->ttfat.push_back(ttfat);
  }
  const double tpot = TimePerOutputToken(record);
  if (!std::isnan(tpot)) latencies->tpot.push_back(tpot);
  AddInterTokenLatencies(record, &latencies->itl);
  latencies->e2e.push_back(Milliseconds(record.finished - record.arrival));
  latencies->queue.push_back(Milliseconds(record.sent - record.arrival));
  return Within(slo.ttft_ms, ttft) && Within(slo.ttfat_ms, ttfat) && Within(slo.itl_ms, tpot) &&
         (!slo.ttfat_ms || record.first_answer.has_value());
}

void AddUsage(const RequestRecord& record, BenchSummary* summary) {
  const v1::Usage& usage = record.report.usage();
  summary->prompt_tokens += usage.prompt_tokens();
  summary->cached_prompt_tokens += usage.cached_prompt_tokens();
  summary->thinking_tokens += usage.thinking_tokens();
  summary->answer_tokens += usage.answer_tokens();
  summary->failovers += record.report.failovers();
  if (record.thinks) {
    ++summary->thinking_ended_by[std::string(ThinkingEndWord(record.report.thinking().ended_by()))];
  }
}

void AddFailure(const RequestRecord& record, BenchSummary* summary) {
  if (record.cut_short) {
    ++summary->cut_short;
    return;
  }
  ++summary->failed;
  const std::string code = absl::StatusCodeToString(record.status.code());
  ++summary->errors[code];
  summary->first_error.try_emplace(code, record.status.message());
}

// Whole seconds, and what is left of the last if it is half of one or all there is.
void AddTimeline(const LoadResult& result, BenchSummary* summary) {
  if (result.records.empty()) return;
  const int64_t start = absl::ToInt64Nanoseconds(result.records.front().sent);
  const double whole = std::floor(summary->seconds);
  const double rest = summary->seconds - whole;
  const bool keep_rest = rest >= 0.5 || (whole == 0 && rest > 0);
  std::vector<double>& buckets = summary->tokens_per_second;
  buckets.resize(static_cast<size_t>(whole) + (keep_rest ? 1 : 0));
  for (const RequestRecord& record : result.records) {
    for (const TokenArrival& token : record.tokens) {
      const auto second = static_cast<size_t>((token.at_ns - start) / 1'000'000'000);
      if (second < buckets.size()) buckets[second] += token.num_ids;
    }
  }
  if (keep_rest) buckets.back() /= rest;
}

}  // namespace

Distribution::Distribution(std::vector<double> values) : values_(std::move(values)) {
  std::sort(values_.begin(), values_.end());
}

double Distribution::Quantile(double share) const {
  if (values_.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double position = share * static_cast<double>(values_.size() - 1);
  const auto below = static_cast<size_t>(position);
  const size_t above = std::min(below + 1, values_.size() - 1);
  return values_[below] +
         (values_[above] - values_[below]) * (position - static_cast<double>(below));
}

double Distribution::Mean() const {
  return values_.empty() ? std::numeric_limits<double>::quiet_NaN()
                         : std::accumulate(values_.begin(), values_.end(), 0.0) /
                               static_cast<double>(values_.size());
}

ordered_json Distribution::ToJson() const {
  // The library writes NaN as null.
  return {{"mean", Mean()},       {"min", Quantile(0)},    {"p50", Quantile(0.5)},
          {"p90", Quantile(0.9)}, {"p99", Quantile(0.99)}, {"max", Quantile(1)}};
}

double BenchSummary::OutputRate() const {
  return seconds > 0 ? static_cast<double>(output_tokens) / seconds : 0;
}

BenchSummary Summarize(const BenchOptions& options, const LoadResult& result) {
  BenchSummary summary;
  summary.seconds = absl::ToDoubleSeconds(result.elapsed);
  summary.peak_in_flight = result.peak_in_flight;
  summary.stopped = result.stopped;
  Latencies latencies;
  for (const RequestRecord& record : result.records) {
    summary.output_tokens += record.num_tokens();
    if (!record.status.ok()) {
      AddFailure(record, &summary);
      continue;
    }
    ++summary.completed;
    AddUsage(record, &summary);
    if (AddRequest(options.slo, record, &latencies)) ++summary.good;
  }
  summary.ttft = Distribution(std::move(latencies.ttft));
  summary.ttfat = Distribution(std::move(latencies.ttfat));
  summary.itl = Distribution(std::move(latencies.itl));
  summary.tpot = Distribution(std::move(latencies.tpot));
  summary.e2e = Distribution(std::move(latencies.e2e));
  summary.queue = Distribution(std::move(latencies.queue));
  AddTimeline(result, &summary);
  return summary;
}

}  // namespace conclave
