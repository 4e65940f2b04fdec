#pragma once

#include "absl/status/status.h"
#include "proto/conclave/v1/inference.pb.h"
#include "router/openai_fields.h"

namespace conclave {

// "tools" of a chat body, each kept as the client wrote it, and "tool_choice": "auto", "none",
// "required" or {"type": "function", "function": {"name": ...}}.
absl::Status ReadTools(const OpenAiFields& body, v1::ChatRequest* request);

}  // namespace conclave
