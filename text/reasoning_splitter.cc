#include "text/reasoning_splitter.h"

#include "absl/strings/strip.h"

namespace conclave {
namespace {

constexpr absl::string_view kThink = "<think>";
constexpr absl::string_view kEndThink = "</think>";
constexpr uint32_t kNoId = UINT32_MAX;  // no token has it

}  // namespace

ReasoningSplitter::ReasoningSplitter(const Vocabulary& vocabulary, bool start_inside)
    : think_id_(vocabulary.IdOfAdded(kThink).value_or(kNoId)),
      end_think_id_(vocabulary.IdOfAdded(kEndThink).value_or(kNoId)),
      in_thinking_(start_inside && end_think_id_ != kNoId),
      skip_newlines_(in_thinking_) {}

SplitText ReasoningSplitter::Push(uint32_t id, absl::string_view piece) {
  SplitText out;
  if (id == kNoId || (id != think_id_ && id != end_think_id_)) {
    AddText(piece, &out);
    return out;
  }
  // The piece is the marker, after what the bytes before it turned out to be (U+FFFD).
  AddText(absl::StripSuffix(piece, id == think_id_ ? kThink : kEndThink), &out);
  if (id == think_id_ && !in_thinking_) {
    in_thinking_ = out.thinking_began = true;
    separator_pending_ = any_thinking_;
    skip_newlines_ = true;
  } else if (id == end_think_id_ && in_thinking_) {
    in_thinking_ = false;
    out.thinking_ended = true;
    held_newlines_.clear();
    skip_newlines_ = !any_answer_;
  }
  return out;
}

SplitText ReasoningSplitter::Flush(absl::string_view tail) {
  SplitText out;
  AddText(tail, &out);
  held_newlines_.clear();
  return out;
}

void ReasoningSplitter::AddText(absl::string_view text, SplitText* out) {
  if (skip_newlines_) {
    while (absl::ConsumePrefix(&text, "\n")) {
    }
  }
  if (text.empty()) return;
  skip_newlines_ = false;
  if (!in_thinking_) {
    out->answer.append(text.data(), text.size());
    any_answer_ = true;
    return;
  }
  const size_t last = text.find_last_not_of('\n');
  if (last == absl::string_view::npos) {
    held_newlines_.append(text.data(), text.size());
    return;
  }
  if (separator_pending_) out->thinking.push_back('\n');
  separator_pending_ = false;
  any_thinking_ = true;
  out->thinking += held_newlines_;
  out->thinking.append(text.data(), last + 1);
  held_newlines_.assign(text.data() + last + 1, text.size() - last - 1);
}

}  // namespace conclave
