#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "router/served_model.h"
#include "text/chat_template.h"

namespace conclave {

// What the prompt of a conversation's next turn begins with, if the client sends back `answer` and
// then a user message: history has lost its thinking there, so that this is not what the worker has
// computed. `prompt_ids` are those of `conversation` as it was rendered; what did not change is
// taken from them instead of being tokenized again. The last one or two ids may differ from the
// real ones, where they merge with the beginning of the user's message.
// Errors: those of RenderChat and Tokenizer::Encode.
absl::StatusOr<std::vector<uint32_t>> NextTurnIds(const ServedModel& model, ChatPrompt conversation,
                                                  absl::string_view answer,
                                                  absl::Span<const uint32_t> prompt_ids);

}  // namespace conclave
