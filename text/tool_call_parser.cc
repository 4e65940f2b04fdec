#include "text/tool_call_parser.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/match.h"
#include "text/json_text.h"

namespace conclave {
namespace {

constexpr absl::string_view kOpen = "<tool_call>";
constexpr absl::string_view kClose = "</tool_call>";
// Past so many in what looks like one JSON string, the first one is taken to end a broken call:
// without a bound, text full of them would be read again and again.
constexpr int kMaxEndsInString = 16;

// Length of the longest proper prefix of `marker` that `text` ends with.
size_t PartialMarker(absl::string_view text, absl::string_view marker) {
  for (size_t length = std::min(text.size(), marker.size() - 1); length > 0; --length) {
    if (absl::EndsWith(text, marker.substr(0, length))) return length;
  }
  return 0;
}

}  // namespace

std::vector<ToolCallEvent> ToolCallParser::Push(absl::string_view text) {
  Events events;
  text_.append(text.data(), text.size());
  Run(/*at_end=*/false, &events);
  return events;
}

std::vector<ToolCallEvent> ToolCallParser::Finish() {
  Events events;
  Run(/*at_end=*/true, &events);
  if (!held_newlines_.empty() && !call_since_content_) {
    ToolCallEvent event;
    event.content = held_newlines_;
    events.push_back(std::move(event));
  }
  held_newlines_.clear();
  return events;
}

void ToolCallParser::Run(bool at_end, Events* events) {
  while (in_call_ ? RunInside(at_end, events) : RunOutside(at_end, events)) {
  }
}

// Both return whether there is more to do with the text at hand.
bool ToolCallParser::RunOutside(bool at_end, Events* events) {
  const size_t open = text_.find(kOpen.data(), 0, kOpen.size());
  if (open != std::string::npos) {
    AddContent(absl::string_view(text_).substr(0, open), events);
    text_.erase(0, open);
    EnterCall();
    return true;
  }
  const size_t num_sure = text_.size() - (at_end ? 0 : PartialMarker(text_, kOpen));
  AddContent(absl::string_view(text_).substr(0, num_sure), events);
  text_.erase(0, num_sure);
  return false;
}

bool ToolCallParser::RunInside(bool at_end, Events* events) {
  for (; scanned_ < text_.size(); ++scanned_) {
    const char c = text_[scanned_];
    if (c == '<' && !escaped_) {
      const absl::string_view rest = absl::string_view(text_).substr(scanned_);
      const bool is_close = absl::StartsWith(rest, kClose);
      if (is_close || absl::StartsWith(rest, kOpen)) {
        const size_t end = scanned_ + (is_close ? kClose.size() : 0);
        if (!in_string_) {
          const absl::string_view text = absl::string_view(text_).substr(0, end);
          if (broken_ || !AddCall(text.substr(kOpen.size(), scanned_ - kOpen.size()), events)) {
            AddContent(text, events);
          }
          LeaveCall(end);
          return true;
        }
        if (is_close) {
          if (first_end_ == 0) first_end_ = end;
          if (++num_ends_in_string_ > kMaxEndsInString) return GiveUp(events);
        }
      } else if (!at_end && (absl::StartsWith(kClose, rest) || absl::StartsWith(kOpen, rest))) {
        return false;  // it may become a marker
      }
    }
    if (broken_) continue;
    if (escaped_) {
      escaped_ = false;
    } else if (in_string_ && c == '\\') {
      escaped_ = true;
    } else if (c == '"') {
      in_string_ = !in_string_;
    }
    if (in_string_ && static_cast<unsigned char>(c) < 0x20) {
      // No JSON string goes on after a line end: this is no call, wherever it ends.
      broken_ = true;
      in_string_ = escaped_ = false;
      if (first_end_ != 0) return GiveUp(events);
    }
  }
  if (!at_end) return false;
  if (!broken_ && AddCall(absl::string_view(text_).substr(kOpen.size()), events)) {
    LeaveCall(text_.size());
    return false;
  }
  if (first_end_ == 0) first_end_ = text_.size();
  return GiveUp(events);
}

// What seemed to be a call up to first_end_ is content.
bool ToolCallParser::GiveUp(Events* events) {
  const size_t end = first_end_;
  AddContent(absl::string_view(text_).substr(0, end), events);
  LeaveCall(end);
  return true;
}

void ToolCallParser::AddContent(absl::string_view text, Events* events) {
  if (text.empty()) return;
  const size_t last = text.find_last_not_of('\n');
  if (last == absl::string_view::npos) {
    held_newlines_.append(text.data(), text.size());
    return;
  }
  ToolCallEvent event;
  event.content = std::move(held_newlines_);
  held_newlines_.assign(text.data() + last + 1, text.size() - last - 1);
  event.content.append(text.data(), last + 1);
  if (!any_content_ && num_calls_ > 0) {
    event.content.erase(0, event.content.find_first_not_of('\n'));
  }
  any_content_ = true;
  call_since_content_ = false;
  events->push_back(std::move(event));
}

bool ToolCallParser::AddCall(absl::string_view body, Events* events) {
  const absl::StatusOr<JsonValue> call = ParseJson(body);
  if (!call.ok()) return false;
  const JsonValue* name = call->Find("name");
  if (name == nullptr || name->string_value().empty()) return false;
  JsonValue arguments = JsonValue::MakeObject({});
  if (const JsonValue* given = call->Find("arguments"); given != nullptr && !given->is_null()) {
    arguments = *given;
  }
  if (arguments.is_string()) {  // some models write the object as a string
    absl::StatusOr<JsonValue> inner = ParseJson(arguments.string_value());
    if (!inner.ok()) return false;
    arguments = *std::move(inner);
  }
  if (!arguments.is_object()) return false;
  ToolCallEvent event;
  event.kind = ToolCallEvent::Kind::kToolCall;
  event.index = num_calls_++;
  event.name = name->string_value();
  event.arguments = ToJson(arguments, NumberSpelling::kAsWritten);
  call_since_content_ = true;
  events->push_back(std::move(event));
  return true;
}

void ToolCallParser::EnterCall() {
  in_call_ = true;
  scanned_ = kOpen.size();
  in_string_ = escaped_ = broken_ = false;
  first_end_ = 0;
  num_ends_in_string_ = 0;
}

void ToolCallParser::LeaveCall(size_t num_bytes) {
  text_.erase(0, num_bytes);
  in_call_ = false;
}

}  // namespace conclave
