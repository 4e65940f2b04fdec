#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace conclave {

// A piece of an answer: either text or one whole call.
struct ToolCallEvent {
  enum class Kind { kContent, kToolCall };
  Kind kind = Kind::kContent;
  std::string content;    // kContent
  int index = 0;          // kToolCall: 0 for the first call of the answer
  std::string name;       // kToolCall
  std::string arguments;  // kToolCall: JSON text, "{}" if the model wrote none
};

// Finds Hermes-style calls, <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>, in the
// answer's text as it arrives. The calls and the concatenated content do not depend on how the
// text was cut. Use it only for requests that have tools.
// - Text outside calls is content; newlines next to a call go, but for those between two texts.
// - What is not a call after all (broken JSON, no name) comes back as content, markup included.
// - A "</tool_call>" inside a JSON string does not end the call; a call that the end of the text
//   cuts off after its JSON is a call.
class ToolCallParser {
 public:
  std::vector<ToolCallEvent> Push(absl::string_view text);
  std::vector<ToolCallEvent> Finish();

  int num_calls() const { return num_calls_; }
  // Between <tool_call> and the end of the call: nothing comes out until it is whole.
  bool in_call() const { return in_call_; }

 private:
  using Events = std::vector<ToolCallEvent>;
  void Run(bool at_end, Events* events);
  bool RunOutside(bool at_end, Events* events);
  bool RunInside(bool at_end, Events* events);
  bool GiveUp(Events* events);
  void AddContent(absl::string_view text, Events* events);
  bool AddCall(absl::string_view body, Events* events);
  void EnterCall();
  void LeaveCall(size_t num_bytes);

  std::string text_;  // not yet decided: starts with <tool_call> if in_call_
  bool in_call_ = false;
  // Of the body, as far as it was read: where, and whether that is in a JSON string.
  size_t scanned_ = 0;
  bool in_string_ = false;
  bool escaped_ = false;
  bool broken_ = false;   // can no longer become JSON: its end is all that matters
  size_t first_end_ = 0;  // end of the first </tool_call> inside a string, 0: none
  int num_ends_in_string_ = 0;

  std::string held_newlines_;  // dropped or sent, by what follows
  bool any_content_ = false;
  bool call_since_content_ = false;
  int num_calls_ = 0;
};

}  // namespace conclave
