#pragma once

#include <iosfwd>
#include <string>

#include "absl/status/status.h"
#include "client/chat_command.h"

namespace conclave {

struct GenerateCommandOptions {
  RouterOptions router;
  SamplingFlags sampling;
  std::string prompt;  // text, or with `ids` token ids
  std::string model;
  bool ids = false;              // prompt and output are token ids
  bool prompt_logprobs = false;  // with max_tokens 0: score the prompt only
  bool ignore_eos = false;
  bool json = false;
};

// `conclave generate`: continues a text or token ids without any chat template. Prints to `out`:
// the text as it streams, or ids, or with json one object {"text", "ids", "prompt_logprobs"
// (if asked), "finish_reason", "usage", "seed"}.
// InvalidArgument: a bad id; otherwise the errors of the Generate call.
absl::Status RunGenerate(const GenerateCommandOptions& options, std::ostream& out);

}  // namespace conclave
