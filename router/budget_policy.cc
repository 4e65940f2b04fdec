#include "router/budget_policy.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "text/json_text.h"

namespace conclave {
namespace {

absl::StatusOr<int64_t> ReadCeiling(const JsonValue& value, absl::string_view where) {
  int64_t number = 0;
  if (!value.is_number() || !absl::SimpleAtoi(value.number_spelling(), &number) || number < -1) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, " is ", ToJson(value), ", want an integer, -1 (no limit) or more"));
  }
  return number;
}

// The smaller of two budgets, where -1 is the largest.
int64_t Smaller(int64_t a, int64_t b) {
  if (a < 0) return b;
  return b < 0 ? a : std::min(a, b);
}

}  // namespace

absl::StatusOr<BudgetCeilings> LoadBudgetCeilings(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::ostringstream text;
  text << file.rdbuf();
  const absl::StatusOr<JsonValue> json = ParseJson(text.str());
  if (!json.ok() || !json->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", json.ok() ? "is no object" : json.status().message()));
  }
  BudgetCeilings ceilings;
  for (const auto& [name, value] : json->members()) {
    if (name == "default") {
      ASSIGN_OR_RETURN(ceilings.other_keys, ReadCeiling(value, absl::StrCat(path, ": default")));
    } else if (name == "keys" && value.is_object()) {
      for (const auto& [key, ceiling] : value.members()) {
        ASSIGN_OR_RETURN(ceilings.keys[key],
                         ReadCeiling(ceiling, absl::StrCat(path, ": ceiling ", ceilings.keys.size(),
                                                           " of keys")));
      }
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": \"", name, "\" is ", KindName(value.kind()),
          ", want \"default\" with an integer or \"keys\" with an object of integers"));
    }
  }
  return ceilings;
}

BudgetPolicy::BudgetPolicy(BudgetPolicyOptions options, RouterMetrics* metrics)
    : options_(std::move(options)), metrics_(metrics) {
  metrics_->adaptive_budget_scale().Set(1);
}

void BudgetPolicy::ObserveQueue(double waiting_per_worker, absl::Time now) {
  {
    absl::MutexLock lock(&mutex_);
    const double past = observed_ == absl::InfinitePast()
                            ? 0
                            : absl::FDivDuration(std::max(now - observed_, absl::ZeroDuration()),
                                                 options_.smoothing);
    queue_ += (waiting_per_worker - queue_) * (1 - std::exp(-past));
    observed_ = now;
  }
  metrics_->adaptive_budget_scale().Set(scale());
}

double BudgetPolicy::scale() const {
  if (options_.adaptive_queue <= 0) return 1;
  absl::MutexLock lock(&mutex_);
  return queue_ <= options_.adaptive_queue ? 1 : options_.adaptive_queue / queue_;
}

int64_t BudgetPolicy::CeilingOf(absl::string_view api_key) const {
  const auto found = options_.ceilings.keys.find(api_key);
  return found != options_.ceilings.keys.end() ? found->second : options_.ceilings.other_keys;
}

void BudgetPolicy::Apply(absl::string_view api_key, PreparedRequest* prepared) const {
  v1::ThinkingReport& report = prepared->thinking;
  const int64_t asked = report.requested_budget();
  int64_t budget = Smaller(asked, CeilingOf(api_key));
  if (budget != asked) report.set_limited_by(v1::BUDGET_LIMIT_CEILING);
  const double share = scale();
  if (share < 1 && report.mode() == v1::THINKING_MODE_THINKING) {
    const int64_t whole = budget < 0 ? prepared->tokens.max_tokens() : budget;
    const int64_t spare = std::max<int64_t>(0, whole - options_.adaptive_floor);
    const int64_t scaled = whole - spare + std::llround(static_cast<double>(spare) * share);
    if (scaled < whole) {
      budget = scaled;
      report.set_limited_by(v1::BUDGET_LIMIT_ADAPTIVE);
    }
  }
  report.set_budget(budget);
  if (prepared->tokens.thinking().enabled()) {
    prepared->tokens.mutable_thinking()->set_budget(budget);
  }
}

}  // namespace conclave
