#include "client/chat_command.h"

#include <unistd.h>

#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/chat_result.h"
#include "client/chat_session.h"
#include "client/input_files.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

absl::Status InFile(const std::string& path, const absl::Status& status) {
  if (status.code() != absl::StatusCode::kInvalidArgument) return status;  // names it already
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

}  // namespace

v1::SamplingOptions ToSamplingOptions(const SamplingFlags& flags) {
  v1::SamplingOptions sampling;
  if (flags.temperature) sampling.set_temperature(*flags.temperature);
  if (flags.top_p) sampling.set_top_p(*flags.top_p);
  if (flags.top_k) sampling.set_top_k(*flags.top_k);
  if (flags.seed) sampling.set_seed(*flags.seed);
  return sampling;
}

absl::StatusOr<v1::ChatRequest> BuildChatRequest(const ChatCommandOptions& options) {
  v1::ChatRequest request;
  request.set_model(options.model);
  if (!options.system.empty()) {
    v1::ChatMessage* system = request.add_messages();
    system->set_role("system");
    system->set_content(options.system);
  }
  if (!options.messages_file.empty()) {
    ASSIGN_OR_RETURN(const std::string json, ReadInput(options.messages_file));
    absl::StatusOr<std::vector<v1::ChatMessage>> messages = ParseMessages(json);
    if (!messages.ok()) return InFile(options.messages_file, messages.status());
    for (const v1::ChatMessage& message : *messages) *request.add_messages() = message;
  }
  if (!options.tools_file.empty()) {
    ASSIGN_OR_RETURN(const std::string json, ReadInput(options.tools_file));
    absl::StatusOr<std::vector<std::string>> tools = ParseTools(json);
    if (!tools.ok()) return InFile(options.tools_file, tools.status());
    for (const std::string& tool : *tools) request.add_tools(tool);
  }
  if (options.prompt) {
    v1::ChatMessage* user = request.add_messages();
    user->set_role("user");
    user->set_content(*options.prompt);
  }
  *request.mutable_sampling() = ToSamplingOptions(options.sampling);
  if (options.sampling.max_tokens) request.set_max_tokens(*options.sampling.max_tokens);
  for (const std::string& stop : options.sampling.stop) request.add_stop(stop);
  if (options.enable_thinking) {
    request.mutable_thinking()->set_enable_thinking(*options.enable_thinking);
  }
  if (options.thinking_budget) request.mutable_thinking()->set_budget(*options.thinking_budget);
  return request;
}

absl::Status RunChat(const ChatCommandOptions& options) {
  const bool conversation = !options.prompt && options.messages_file.empty();
  if (conversation && options.json) {
    return absl::InvalidArgumentError("--json needs a PROMPT or --messages");
  }
  if (options.messages_file == "-" && options.tools_file == "-") {
    return absl::InvalidArgumentError("--messages and --tools cannot both be standard input");
  }
  if (conversation && options.tools_file == "-") {
    return absl::InvalidArgumentError(
        "--tools cannot be standard input in a conversation: questions come from there");
  }
  ASSIGN_OR_RETURN(v1::ChatRequest request, BuildChatRequest(options));
  ChatSessionOptions session_options;
  session_options.router = options.router;
  session_options.print = !options.json;
  session_options.out_is_terminal = isatty(STDOUT_FILENO) == 1;
  session_options.in_is_terminal = isatty(STDIN_FILENO) == 1;
  session_options.stats = options.stats || (conversation && session_options.out_is_terminal);
  ASSIGN_OR_RETURN(const std::unique_ptr<ChatSession> session,
                   ChatSession::Open(session_options, std::move(request), std::cout, std::cerr));
  if (conversation) return session->Converse(STDIN_FILENO);
  ASSIGN_OR_RETURN(const ChatResult result, session->Ask());
  if (options.json) std::cout << ToLine(result.ToJson()) << std::endl;
  return absl::OkStatus();
}

}  // namespace conclave
