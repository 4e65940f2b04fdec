#include "client/bench_options.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

constexpr int kDefaultConcurrency = 16;

absl::Status CheckPositive(const char* flag, const std::optional<double>& value) {
  if (!value.has_value() || (std::isfinite(*value) && *value > 0)) return absl::OkStatus();
  return errors::OutOfRange(flag, *value, "more than 0");
}

absl::Status CheckPlots(const std::vector<std::string>& plots) {
  for (const std::string& plot : plots) {
    if (std::find(std::begin(kBenchPlots), std::end(kBenchPlots), plot) == std::end(kBenchPlots)) {
      return errors::OutOfRange(
          "--plot", absl::StrCat("\"", plot, "\""),
          absl::StrCat("one of ",
                       absl::StrJoin(std::begin(kBenchPlots), std::end(kBenchPlots), ", ")));
    }
  }
  return absl::OkStatus();
}

}  // namespace

int BenchOptions::Concurrency() const {
  const int most = rate.has_value() ? limits::kDefaultMaxInflightRequests : kDefaultConcurrency;
  return static_cast<int>(std::min<int64_t>(concurrency.value_or(most), num_requests));
}

int BenchOptions::MaxInputLen() const {
  return static_cast<int>(std::floor(input_len * (1 + range_ratio)));
}

int BenchOptions::MaxOutputLen() const {
  return static_cast<int>(std::floor(output_len * (1 + range_ratio)));
}

absl::Status BenchOptions::Validate() const {
  if (num_requests < 1 || num_requests > limits::kMaxBenchRequests) {
    return errors::OutOfRange("--num_requests", num_requests,
                              absl::StrCat("1..", limits::kMaxBenchRequests));
  }
  if (concurrency && (*concurrency < 1 || *concurrency > limits::kMaxBenchConcurrency)) {
    return errors::OutOfRange("--concurrency", *concurrency,
                              absl::StrCat("1..", limits::kMaxBenchConcurrency));
  }
  for (const auto& [flag, value] :
       {std::pair("--input_len", input_len), std::pair("--output_len", output_len)}) {
    if (value < 1 || value > limits::kMaxContextTokens) {
      return errors::OutOfRange(flag, value, absl::StrCat("1..", limits::kMaxContextTokens));
    }
  }
  if (!(range_ratio >= 0 && range_ratio < 1)) {
    return errors::OutOfRange("--range_ratio", range_ratio, "0 or more and less than 1");
  }
  if (num_requests * MaxOutputLen() > limits::kMaxBenchTokens) {
    return errors::OutOfRange("--num_requests x --output_len", num_requests * MaxOutputLen(),
                              absl::StrCat("at most ", limits::kMaxBenchTokens, " tokens"));
  }
  if (shared_prefix_len < 0 || shared_prefix_len > input_len * (1 - range_ratio)) {
    return errors::OutOfRange("--shared_prefix_len", shared_prefix_len,
                              "0 up to the shortest prompt's length");
  }
  if (think_share && !(*think_share >= 0 && *think_share <= 1)) {
    return errors::OutOfRange("--think_share", *think_share, "0..1");
  }
  if (thinking_budget && !IsChat()) {
    return absl::InvalidArgumentError(
        "--thinking_budget is given, want --think_share or --prompts with it: raw token ids do not "
        "think");
  }
  if (thinking_budget && *thinking_budget < -1) {
    return errors::OutOfRange("--thinking_budget", *thinking_budget, "-1 (no limit) or more");
  }
  if (shared_prefix_len > 0 && !prompts_file.empty()) {
    return absl::InvalidArgumentError(
        "--shared_prefix_len is for random prompts and does not go with --prompts");
  }
  if (warmup < 0 || warmup > limits::kMaxBenchConcurrency) {
    return errors::OutOfRange("--warmup", warmup,
                              absl::StrCat("0..", limits::kMaxBenchConcurrency));
  }
  RETURN_IF_ERROR(CheckPositive("--rate", rate));
  RETURN_IF_ERROR(CheckPositive("--slo_ttft_ms", slo.ttft_ms));
  RETURN_IF_ERROR(CheckPositive("--slo_ttfat_ms", slo.ttfat_ms));
  RETURN_IF_ERROR(CheckPositive("--slo_itl_ms", slo.itl_ms));
  return CheckPlots(plots);
}

}  // namespace conclave
