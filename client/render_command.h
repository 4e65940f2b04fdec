#pragma once

#include <istream>
#include <optional>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "text/chat_template.h"

namespace conclave {

struct RenderOptions {
  std::string model_dir;                      // only the tokenizer's files are read
  std::optional<TemplateKind> chat_template;  // not given: the checkpoint's own
};

// `conclave render`: what a server would send the model for a chat, one JSON object a line:
// {"messages", "tools", "enable_thinking", "add_generation_prompt"} gives {"text", "ids"}. A bad
// line gives {"error"}, naming its number; the others are still answered and InvalidArgument says
// how many were bad. Empty lines are passed over.
absl::Status RunRender(const RenderOptions& options, std::istream& in, std::ostream& out);

}  // namespace conclave
