#pragma once

#include <optional>

#include "absl/strings/string_view.h"
#include "text/chat_template.h"

namespace conclave {

enum class ThinkingMode { kThinking, kOff };

// Who decided.
enum class ThinkingSource {
  kRequest,     // enable_thinking of the request
  kSoftSwitch,  // /think or /no_think in the text
  kDefault,     // the server's default
  kModel,       // the model knows one mode only
};

struct ThinkingDecision {
  ThinkingMode mode = ThinkingMode::kThinking;
  ThinkingSource source = ThinkingSource::kDefault;
  friend bool operator==(const ThinkingDecision&, const ThinkingDecision&) = default;
};

// "thinking", "off".
absl::string_view ThinkingModeName(ThinkingMode mode);
// "request", "soft_switch", "default", "model".
absl::string_view ThinkingSourceName(ThinkingSource source);

// The effective mode of the turn: enable_thinking=false, else the last soft switch, else
// enable_thinking=true, else `default_mode`. A caller whose decision is kOff by kDefault renders
// with enable_thinking=false; a soft switch is the model's to follow, the prompt stays open.
ThinkingDecision ResolveThinkingMode(TemplateKind kind, const ChatPrompt& prompt,
                                     ThinkingMode default_mode = ThinkingMode::kThinking);

// The last /think or /no_think of user and system messages, in order; never of tool messages nor
// of user turns that are a tool's response. A switch stands alone: a path (/think/x, a/think,
// ./think) or a longer word (/thinking) is none.
std::optional<ThinkingMode> LastSoftSwitch(const ChatPrompt& prompt);

struct SamplingDefaults {
  float temperature = 0;
  float top_p = 0;
  int top_k = 0;
};

// Thinking 0.6 / 0.95 / 20, otherwise 0.7 / 0.8 / 20. Source: Qwen3 technical report, 4.6.
SamplingDefaults SamplingDefaultsFor(ThinkingMode mode);

}  // namespace conclave
