#include "router/next_turn.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

constexpr absl::string_view kHeader = "<|im_start|>";
constexpr absl::string_view kEnd = "<|im_end|>\n";

// Where in `after` the last message begins that is in both texts up to there.
size_t LastCommonHeader(absl::string_view before, absl::string_view after) {
  const auto [end, unused] =
      std::mismatch(before.begin(), before.end(), after.begin(), after.end());
  const size_t common = static_cast<size_t>(end - before.begin());
  const size_t header = before.substr(0, common).rfind(kHeader);
  return header == absl::string_view::npos ? 0 : header;
}

size_t CountHeaders(absl::string_view text) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(kHeader, at)) != absl::string_view::npos; ++count) {
    at += kHeader.size();
  }
  return count;
}

}  // namespace

absl::StatusOr<std::vector<uint32_t>> NextTurnIds(const ServedModel& model, ChatPrompt conversation,
                                                  absl::string_view answer,
                                                  absl::Span<const uint32_t> prompt_ids) {
  ASSIGN_OR_RETURN(const std::string before, RenderChat(model.template_kind, conversation));
  ChatMessage said;
  said.role = "assistant";
  said.content = std::string(answer);
  ChatMessage next;
  next.role = "user";
  conversation.messages.push_back(std::move(said));
  conversation.messages.push_back(std::move(next));
  conversation.add_generation_prompt = false;
  ASSIGN_OR_RETURN(const std::string rendered, RenderChat(model.template_kind, conversation));
  const absl::string_view after = absl::StripSuffix(rendered, kEnd);

  // Headers are added tokens: the text before one is tokenized apart from what follows.
  const size_t header = LastCommonHeader(before, after);
  const size_t num_headers = CountHeaders(after.substr(0, header));
  const std::optional<uint32_t> header_id = model.vocabulary().IdOfAdded(kHeader);
  size_t kept = 0;
  if (header > 0 && header_id.has_value()) {
    auto at = std::find(prompt_ids.begin(), prompt_ids.end(), *header_id);
    for (size_t i = 0; i < num_headers && at != prompt_ids.end(); ++i) {
      at = std::find(at + 1, prompt_ids.end(), *header_id);
    }
    if (at != prompt_ids.end()) kept = static_cast<size_t>(at - prompt_ids.begin());
  }
  std::vector<uint32_t> ids(prompt_ids.begin(), prompt_ids.begin() + kept);
  ASSIGN_OR_RETURN(const std::vector<uint32_t> rest,
                   model.tokenizer->Encode(kept > 0 ? after.substr(header) : after));
  ids.insert(ids.end(), rest.begin(), rest.end());
  return ids;
}

}  // namespace conclave
