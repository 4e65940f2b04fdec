#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/conclave/v1/inference.pb.h"

namespace conclave {

// The whole file, or standard input for "-". NotFound or Internal if it cannot be read,
// InvalidArgument if it is longer than limits::kMaxPromptBytes.
absl::StatusOr<std::string> ReadInput(const std::string& path);

// Messages in OpenAI's form: a JSON list of {"role", "content", "reasoning_content",
// "tool_calls", "tool_call_id"}. Content is a string, null or a list of text parts; arguments are
// JSON text or an object. Keys that Conclave does not know are ignored, as servers do.
// InvalidArgument: "messages[2].role is missing, want system, user, assistant or tool".
absl::StatusOr<std::vector<v1::ChatMessage>> ParseMessages(absl::string_view json);

// A JSON list of tools in OpenAI's form, {"type": "function", "function": {"name", ...}}; each
// comes back as JSON text with its keys in order and its numbers as they were spelled.
// InvalidArgument naming the entry.
absl::StatusOr<std::vector<std::string>> ParseTools(absl::string_view json);

// Token ids separated by commas or white space: "1, 2 3". InvalidArgument naming what is no id.
absl::StatusOr<std::vector<uint32_t>> ParseIds(absl::string_view text);

}  // namespace conclave
