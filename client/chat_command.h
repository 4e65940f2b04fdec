#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/conclave/v1/inference.pb.h"

namespace conclave {

// Where the router is and how long a call may take.
struct RouterOptions {
  std::string endpoint = "127.0.0.1:50050";  // gRPC target
  double timeout_seconds = 3600;             // of one request
};

// What `chat` and `generate` share; not given: the router's default.
struct SamplingFlags {
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<uint32_t> top_k;
  std::optional<uint64_t> seed;
  std::optional<uint32_t> max_tokens;
  std::vector<std::string> stop;
};
v1::SamplingOptions ToSamplingOptions(const SamplingFlags& flags);

struct ChatCommandOptions {
  RouterOptions router;
  SamplingFlags sampling;
  std::optional<std::string>
      prompt;  // neither this nor messages: ask on the terminal, line by line
  std::string system;
  std::string messages_file;  // "-": standard input
  std::string tools_file;
  std::optional<bool> enable_thinking;
  std::optional<int64_t> thinking_budget;
  std::string model;
  bool json = false;
  bool stats = false;  // a line of tokens and times on standard error after each answer
};

// The request's first messages, tools and parameters, from flags and files. The errors of
// ReadInput, ParseMessages and ParseTools, with the file's name.
absl::StatusOr<v1::ChatRequest> BuildChatRequest(const ChatCommandOptions& options);

// `conclave chat`: one answer, or a conversation. InvalidArgument for flags that do not go
// together; otherwise the errors of BuildChatRequest and of the Chat call. Blocks SIGINT in this
// thread from then on: Ctrl-C cancels the running answer.
absl::Status RunChat(const ChatCommandOptions& options);

}  // namespace conclave
