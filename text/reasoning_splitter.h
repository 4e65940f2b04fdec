#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "text/vocabulary.h"

namespace conclave {

// What one token adds. At most one of the two texts is not empty.
struct SplitText {
  std::string thinking;
  std::string answer;
  bool thinking_began = false;  // after this token the text is thinking
  bool thinking_ended = false;  // after this token the text is answer
};

// Tells thinking from answer in a stream of tokens. Only the ids of <think> and </think> switch;
// their look-alikes spelled with other tokens are text. "<think>\nreason\n</think>\n\nanswer" is
// thinking "reason" and answer "answer": newlines at both ends of a block and before the answer
// go. If thinking reopens later, its blocks are joined with "\n" and the answer's newlines stay.
// A <think> inside thinking and a </think> outside it are dropped.
class ReasoningSplitter {
 public:
  // start_inside: the prompt ended after <think> (TemplateKind::kThinking2507). A vocabulary
  // without the two tokens makes everything answer.
  ReasoningSplitter(const Vocabulary& vocabulary, bool start_inside);

  // `piece`: what StreamDecoder returned for `id`; skip_special may be either, neither marker is.
  SplitText Push(uint32_t id, absl::string_view piece);
  // The end: `tail` is what StreamDecoder::Flush returned.
  SplitText Flush(absl::string_view tail);

  // Whether the next token's text is thinking.
  bool in_thinking() const { return in_thinking_; }

 private:
  void AddText(absl::string_view text, SplitText* out);

  uint32_t think_id_;
  uint32_t end_think_id_;
  bool in_thinking_;
  bool skip_newlines_ = false;      // newlines are dropped until other text comes
  std::string held_newlines_;       // of thinking: dropped if </think> follows
  bool any_thinking_ = false;       // some thinking text was returned
  bool any_answer_ = false;         // some answer text was returned
  bool separator_pending_ = false;  // "\n" goes before the next thinking text
};

}  // namespace conclave
