#include "text/thinking_mode.h"

#include <string>

#include "absl/strings/ascii.h"

namespace conclave {
namespace {

bool IsWordByte(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-';
}

// Whether text[begin, end), which is a switch, stands alone. Letters of other scripts before it do
// no harm: Chinese puts no space there.
bool StandsAlone(absl::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    const char before = text[begin - 1];
    if (IsWordByte(before) || before == '/' || before == '\\' || before == '~') return false;
    if (before == '.') {  // "./think" and "../think" are paths, "Why?./think" is not
      const char earlier = begin > 1 ? text[begin - 2] : ' ';
      if (earlier == '.' || earlier == '/' ||
          absl::ascii_isspace(static_cast<unsigned char>(earlier))) {
        return false;
      }
    }
  }
  if (end == text.size()) return true;
  if (IsWordByte(text[end]) || text[end] == '/') return false;
  return text[end] != '.' || end + 1 == text.size() || !IsWordByte(text[end + 1]);
}

std::optional<ThinkingMode> LastSwitchOf(absl::string_view text) {
  constexpr absl::string_view kOn = "/think", kOff = "/no_think";
  for (size_t slash = text.rfind('/'); slash != absl::string_view::npos;
       slash = slash == 0 ? absl::string_view::npos : text.rfind('/', slash - 1)) {
    const absl::string_view rest = text.substr(slash);
    for (const absl::string_view word : {kOn, kOff}) {
      if (rest.substr(0, word.size()) == word && StandsAlone(text, slash, slash + word.size())) {
        return word == kOn ? ThinkingMode::kThinking : ThinkingMode::kOff;
      }
    }
  }
  return std::nullopt;
}

}  // namespace

absl::string_view ThinkingModeName(ThinkingMode mode) {
  return mode == ThinkingMode::kThinking ? "thinking" : "off";
}

absl::string_view ThinkingSourceName(ThinkingSource source) {
  switch (source) {
    case ThinkingSource::kRequest:
      return "request";
    case ThinkingSource::kSoftSwitch:
      return "soft_switch";
    case ThinkingSource::kDefault:
      return "default";
    case ThinkingSource::kModel:
      return "model";
  }
  return "";
}

std::optional<ThinkingMode> LastSoftSwitch(const ChatPrompt& prompt) {
  for (auto it = prompt.messages.rbegin(); it != prompt.messages.rend(); ++it) {
    const bool may_switch =
        it->role == "system" || (it->role == "user" && !IsToolResponseText(it->content));
    if (!may_switch) continue;
    const std::optional<ThinkingMode> found = LastSwitchOf(it->content);
    if (found.has_value()) return found;
  }
  return std::nullopt;
}

ThinkingDecision ResolveThinkingMode(TemplateKind kind, const ChatPrompt& prompt,
                                     ThinkingMode default_mode) {
  if (kind == TemplateKind::kInstruct2507) return {ThinkingMode::kOff, ThinkingSource::kModel};
  if (kind == TemplateKind::kThinking2507) return {ThinkingMode::kThinking, ThinkingSource::kModel};
  if (prompt.enable_thinking == false) return {ThinkingMode::kOff, ThinkingSource::kRequest};
  if (const std::optional<ThinkingMode> soft = LastSoftSwitch(prompt); soft.has_value()) {
    return {*soft, ThinkingSource::kSoftSwitch};
  }
  if (prompt.enable_thinking == true) return {ThinkingMode::kThinking, ThinkingSource::kRequest};
  return {default_mode, ThinkingSource::kDefault};
}

SamplingDefaults SamplingDefaultsFor(ThinkingMode mode) {
  if (mode == ThinkingMode::kThinking) return {.temperature = 0.6f, .top_p = 0.95f, .top_k = 20};
  return {.temperature = 0.7f, .top_p = 0.8f, .top_k = 20};
}

}  // namespace conclave
