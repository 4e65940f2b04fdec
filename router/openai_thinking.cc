#include "router/openai_thinking.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

// One thing a client said: where, in its own words, and what it comes to.
template <typename Value>
struct Said {
  std::string path;
  std::string words;  // "true", "\"low\" (1024)"
  Value value;
};

struct Wishes {
  std::vector<Said<bool>> switches;
  std::vector<Said<int64_t>> budgets;
  std::vector<Said<int64_t>> reserves;
  std::vector<Said<std::string>> early_stops;
};

constexpr struct {
  absl::string_view name;
  int64_t budget;
} kEfforts[] = {
    {"minimal", 256}, {"low", 1024}, {"medium", 4096}, {"high", 16384}, {"xhigh", -1}, {"max", -1},
};

absl::Status AddSwitch(const OpenAiFields& fields, absl::string_view key, Wishes* wishes) {
  ASSIGN_OR_RETURN(const std::optional<bool> value, fields.Bool(key));
  if (value.has_value()) {
    wishes->switches.push_back({fields.Path(key), *value ? "true" : "false", *value});
  }
  return absl::OkStatus();
}

absl::Status AddInteger(const OpenAiFields& fields, absl::string_view key, int64_t low,
                        int64_t high, std::vector<Said<int64_t>>* said) {
  ASSIGN_OR_RETURN(const std::optional<int64_t> value, fields.Integer(key, low, high));
  if (value.has_value()) said->push_back({fields.Path(key), absl::StrCat(*value), *value});
  return absl::OkStatus();
}

absl::Status AddBudget(const OpenAiFields& fields, absl::string_view key, Wishes* wishes) {
  return AddInteger(fields, key, -1, std::numeric_limits<int64_t>::max(), &wishes->budgets);
}

absl::Status AddEffort(const OpenAiFields& fields, absl::string_view key, Wishes* wishes) {
  ASSIGN_OR_RETURN(const std::optional<std::string> effort, fields.String(key));
  if (!effort.has_value()) return absl::OkStatus();
  const std::string quoted = absl::StrCat("\"", *effort, "\"");
  if (*effort == "none") {
    wishes->switches.push_back({fields.Path(key), quoted, false});
    return absl::OkStatus();
  }
  for (const auto& [name, budget] : kEfforts) {
    if (*effort == name) {
      wishes->budgets.push_back(
          {fields.Path(key), absl::StrCat(quoted, " (", budget, ")"), budget});
      return absl::OkStatus();
    }
  }
  return WrongField(fields.Path(key), *fields.Given(key),
                    "none, minimal, low, medium, high, xhigh or max");
}

// Anthropic's {"thinking": {"type": "enabled", "budget_tokens": 1024}}.
absl::Status AddThinkingObject(const OpenAiFields& thinking, Wishes* wishes) {
  ASSIGN_OR_RETURN(const std::optional<std::string> type, thinking.String("type"));
  if (type.has_value()) {
    if (*type != "enabled" && *type != "disabled") {
      return WrongField(thinking.Path("type"), *thinking.Given("type"),
                        "\"enabled\" or \"disabled\"");
    }
    wishes->switches.push_back(
        {thinking.Path("type"), absl::StrCat("\"", *type, "\""), *type == "enabled"});
  }
  return AddBudget(thinking, "budget_tokens", wishes);
}

absl::Status AddNested(const OpenAiFields& fields, Wishes* wishes) {
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> kwargs, fields.Object("chat_template_kwargs"));
  if (kwargs.has_value()) {
    RETURN_IF_ERROR(AddSwitch(*kwargs, "enable_thinking", wishes));
    RETURN_IF_ERROR(AddBudget(*kwargs, "thinking_budget", wishes));
  }
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> nvext, fields.Object("nvext"));
  if (nvext.has_value()) RETURN_IF_ERROR(AddBudget(*nvext, "max_thinking_tokens", wishes));
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> custom, fields.Object("custom_params"));
  if (custom.has_value()) RETURN_IF_ERROR(AddBudget(*custom, "thinking_budget", wishes));
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> thinking, fields.Object("thinking"));
  if (thinking.has_value()) RETURN_IF_ERROR(AddThinkingObject(*thinking, wishes));
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> reasoning, fields.Object("reasoning"));
  if (reasoning.has_value()) {
    RETURN_IF_ERROR(AddSwitch(*reasoning, "enabled", wishes));
    RETURN_IF_ERROR(AddEffort(*reasoning, "effort", wishes));
    RETURN_IF_ERROR(AddBudget(*reasoning, "max_tokens", wishes));
  }
  return absl::OkStatus();
}

absl::Status AddAll(const OpenAiFields& fields, Wishes* wishes) {
  RETURN_IF_ERROR(AddSwitch(fields, "enable_thinking", wishes));
  for (const absl::string_view key :
       {"thinking_budget", "thinking_token_budget", "thinking_budget_tokens"}) {
    RETURN_IF_ERROR(AddBudget(fields, key, wishes));
  }
  RETURN_IF_ERROR(AddEffort(fields, "reasoning_effort", wishes));
  RETURN_IF_ERROR(AddInteger(fields, "answer_reserve", 0, std::numeric_limits<uint32_t>::max(),
                             &wishes->reserves));
  ASSIGN_OR_RETURN(const std::optional<std::string> text, fields.String("early_stop_text"));
  if (text.has_value()) {
    wishes->early_stops.push_back(
        {fields.Path("early_stop_text"), DescribeJson(JsonValue::String(*text)), *text});
  }
  return AddNested(fields, wishes);
}

template <typename A, typename B>
absl::Status Conflict(const Said<A>& a, const Said<B>& b) {
  return absl::InvalidArgumentError(absl::StrCat(a.path, " is ", a.words, " and ", b.path, " is ",
                                                 b.words, ", want one meaning"));
}

template <typename Value>
absl::Status CheckAgree(const std::vector<Said<Value>>& said) {
  for (const Said<Value>& other : said) {
    if (other.value != said[0].value) return Conflict(said[0], other);
  }
  return absl::OkStatus();
}

absl::Status CheckAgree(const Wishes& wishes) {
  RETURN_IF_ERROR(CheckAgree(wishes.switches));
  RETURN_IF_ERROR(CheckAgree(wishes.budgets));
  RETURN_IF_ERROR(CheckAgree(wishes.reserves));
  RETURN_IF_ERROR(CheckAgree(wishes.early_stops));
  if (wishes.switches.empty() || wishes.budgets.empty()) return absl::OkStatus();
  const bool on = wishes.switches[0].value;
  if (on && wishes.budgets[0].value == 0) return Conflict(wishes.switches[0], wishes.budgets[0]);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::ThinkingOptions> ReadThinking(const OpenAiFields& body) {
  Wishes wishes;
  RETURN_IF_ERROR(AddAll(body, &wishes));
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> nested, body.Object("extra_body"));
  if (nested.has_value()) RETURN_IF_ERROR(AddAll(*nested, &wishes));
  RETURN_IF_ERROR(CheckAgree(wishes));

  v1::ThinkingOptions options;
  if (!wishes.switches.empty()) options.set_enable_thinking(wishes.switches[0].value);
  if (!wishes.budgets.empty()) options.set_budget(wishes.budgets[0].value);
  if (!wishes.reserves.empty()) {
    options.set_answer_reserve(static_cast<uint32_t>(wishes.reserves[0].value));
  }
  if (!wishes.early_stops.empty()) options.set_early_stop_text(wishes.early_stops[0].value);
  return options;
}

}  // namespace conclave
