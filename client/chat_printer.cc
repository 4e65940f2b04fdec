#include "client/chat_printer.h"

#include <algorithm>
#include <ostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/chat_result.h"
#include "rpc/thinking_names.h"

namespace conclave {
namespace {

constexpr absl::string_view kDim = "\x1b[2m";
constexpr absl::string_view kPlain = "\x1b[0m";

bool HasTokens(const v1::ChatEvent& event) {
  return event.has_thinking_delta() || event.has_content_delta() || event.has_tool_call_delta();
}

}  // namespace

std::string SafeForTerminal(absl::string_view utf8_text) {
  std::string safe;
  for (size_t i = 0; i < utf8_text.size(); ++i) {
    const unsigned char c = utf8_text[i];
    if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) {
      safe += "\xEF\xBF\xBD";
    } else if (c == 0xC2 && i + 1 < utf8_text.size() &&
               static_cast<unsigned char>(utf8_text[i + 1]) < 0xA0) {
      safe += "\xEF\xBF\xBD";  // U+0080..U+009F, whose U+009B begins a control sequence
      ++i;
    } else {
      safe.push_back(static_cast<char>(c));
    }
  }
  return safe;
}

void ChatPrinter::Write(absl::string_view text) {
  if (text.empty()) return;
  const std::string safe = is_terminal_ ? SafeForTerminal(text) : std::string(text);
  out_ << safe;
  at_line_start_ = safe.back() == '\n';
}

void ChatPrinter::Enter(Part part) {
  if (part == part_) return;
  const Part left = std::exchange(part_, part);
  if (!at_line_start_) Write("\n");
  if (left == Part::kThinking) out_ << (is_terminal_ ? kPlain : "</think>\n") << "\n";
  if (part == Part::kThinking) out_ << (is_terminal_ ? kDim : "<think>\n");
}

void ChatPrinter::Print(const v1::ChatEvent& event) {
  // Tokens may come without text: those of an empty think block, or half a character.
  if (!event.thinking_delta().text().empty()) {
    Enter(Part::kThinking);
    Write(event.thinking_delta().text());
  } else if (!event.content_delta().text().empty()) {
    Enter(Part::kContent);
    Write(event.content_delta().text());
  } else if (event.has_tool_call_delta()) {
    Enter(Part::kToolCall);
    const v1::ToolCallDelta& delta = event.tool_call_delta();
    if (!delta.name().empty()) {
      if (!at_line_start_) Write("\n");
      Write(absl::StrCat("[tool call] ", delta.name(), " "));
    }
    Write(delta.arguments());
  }
  if (HasTokens(event)) out_ << std::flush;
}

void ChatPrinter::End() {
  Enter(Part::kNone);
  out_ << std::flush;
}

void ChatTimes::Note(const v1::ChatEvent& event, absl::Time now) {
  if (!HasTokens(event)) return;
  first_token_ = std::min(first_token_, now);
  if (!event.has_thinking_delta()) first_answer_ = std::min(first_answer_, now);
  last_token_ = now;
}

std::string ChatTimes::Summary(const v1::Finished& finished) const {
  const v1::Usage& usage = finished.usage();
  const v1::ThinkingReport& report = finished.thinking();
  std::string text = absl::StrFormat("%d prompt tokens (%d cached)", usage.prompt_tokens(),
                                     usage.cached_prompt_tokens());
  if (report.mode() == v1::THINKING_MODE_THINKING) {
    absl::StrAppend(&text, ", ", usage.thinking_tokens(), " thinking (",
                    report.budget() < 0 ? "no budget" : absl::StrCat("budget ", report.budget()),
                    ", ended by ", ThinkingEndWord(report.ended_by()), ")");
  }
  absl::StrAppendFormat(&text, ", %d answer; finished by %s", usage.answer_tokens(),
                        FinishReasonName(finished.reason()));
  if (first_token_ == absl::InfiniteFuture()) return text;
  absl::StrAppendFormat(&text, "; first token after %.3f s",
                        absl::ToDoubleSeconds(first_token_ - sent_));
  if (first_answer_ != absl::InfiniteFuture() && usage.thinking_tokens() > 0) {
    absl::StrAppendFormat(&text, ", answer after %.3f s",
                          absl::ToDoubleSeconds(first_answer_ - sent_));
  }
  // The first token's time is the prompt's; the rate is that of the tokens after it.
  const double seconds = absl::ToDoubleSeconds(last_token_ - first_token_);
  if (usage.completion_tokens() > 1 && seconds > 0) {
    absl::StrAppendFormat(&text, ", %.1f tokens/s", (usage.completion_tokens() - 1) / seconds);
  }
  return text;
}

}  // namespace conclave
