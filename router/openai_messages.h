#pragma once

#include "absl/status/status.h"
#include "proto/conclave/v1/inference.pb.h"
#include "router/openai_fields.h"

namespace conclave {

// "messages" of a chat body. Roles: system, developer (becomes system), user, assistant, tool.
// content: string, list of text parts (joined with "\n"), null or missing (both empty). Thinking
// of earlier turns is reasoning_content or reasoning, of assistants only. A call's arguments are a
// JSON object or the text of one. A tool message names its call by tool_call_id or id.
absl::Status ReadMessages(const OpenAiFields& body, v1::ChatRequest* request);

}  // namespace conclave
