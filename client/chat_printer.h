#pragma once

#include <iosfwd>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/conclave/v1/inference.pb.h"

namespace conclave {

// Control characters out, tabs and newlines kept: a model's text must not steer a terminal.
std::string SafeForTerminal(absl::string_view utf8_text);

// Prints a chat's events as they come. On a terminal thinking is dimmed; elsewhere it stands
// between <think> and </think> lines, as the model writes it.
class ChatPrinter {
 public:
  ChatPrinter(std::ostream& out, bool is_terminal) : out_(out), is_terminal_(is_terminal) {}

  void Print(const v1::ChatEvent& event);
  // Ends the line and any dimming, whatever came last.
  void End();

 private:
  enum class Part { kNone, kThinking, kContent, kToolCall };
  void Enter(Part part);
  void Write(absl::string_view text);

  std::ostream& out_;
  const bool is_terminal_;
  Part part_ = Part::kNone;
  bool at_line_start_ = true;
};

// When a chat's tokens came, as its reader saw it.
class ChatTimes {
 public:
  explicit ChatTimes(absl::Time sent) : sent_(sent) {}
  void Note(const v1::ChatEvent& event, absl::Time now);
  // "31 prompt tokens (16 cached), 24 thinking (budget 64, ended by natural), 12 answer; first
  // token after 0.05 s, answer after 0.40 s, 38.2 tokens/s".
  std::string Summary(const v1::Finished& finished) const;

 private:
  const absl::Time sent_;
  absl::Time first_token_ = absl::InfiniteFuture();
  absl::Time first_answer_ = absl::InfiniteFuture();
  absl::Time last_token_ = absl::InfiniteFuture();
};

}  // namespace conclave
