#include "rpc/thinking_names.h"

namespace conclave {

absl::string_view ThinkingModeWord(v1::ThinkingMode mode) {
  switch (mode) {
    case v1::THINKING_MODE_THINKING:
      return "thinking";
    case v1::THINKING_MODE_OFF:
      return "off";
    default:
      return "raw";
  }
}

absl::string_view ThinkingSourceWord(v1::ThinkingSource source) {
  switch (source) {
    case v1::THINKING_SOURCE_REQUEST:
      return "request";
    case v1::THINKING_SOURCE_SOFT_SWITCH:
      return "soft_switch";
    case v1::THINKING_SOURCE_DEFAULT:
      return "default";
    case v1::THINKING_SOURCE_MODEL:
      return "model";
    default:
      return "none";
  }
}

absl::string_view ThinkingEndWord(v1::ThinkingEnd end) {
  switch (end) {
    case v1::THINKING_END_NATURAL:
      return "natural";
    case v1::THINKING_END_BUDGET:
      return "budget";
    case v1::THINKING_END_ANSWER_RESERVE:
      return "answer_reserve";
    case v1::THINKING_END_CLIENT:
      return "client";
    default:
      return "none";
  }
}

absl::string_view BudgetLimitWord(v1::BudgetLimit limit) {
  switch (limit) {
    case v1::BUDGET_LIMIT_CEILING:
      return "ceiling";
    case v1::BUDGET_LIMIT_ADAPTIVE:
      return "adaptive";
    default:
      return "none";
  }
}

}  // namespace conclave
