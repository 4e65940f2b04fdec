#pragma once

#include <grpcpp/client_context.h>

#include <deque>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/chat_command.h"
#include "client/chat_result.h"
#include "client/child_process.h"
#include "proto/conclave/v1/inference.grpc.pb.h"

namespace conclave {

struct ChatSessionOptions {
  RouterOptions router;
  bool print = true;  // answers as they stream
  bool out_is_terminal = false;
  bool in_is_terminal = false;
  bool stats = false;
};

// A conversation with a router: the messages so far, and at most one answer being streamed by a
// second thread while this one waits for Ctrl-C, for the answer's end and for lines typed.
class ChatSession {
 public:
  // `request` holds the first messages and every parameter. Blocks SIGINT in the calling thread
  // and in those started from it. Internal if the system has no descriptor for the events.
  static absl::StatusOr<std::unique_ptr<ChatSession>> Open(ChatSessionOptions options,
                                                           v1::ChatRequest request,
                                                           std::ostream& out, std::ostream& err);
  ~ChatSession();

  // Sends the messages as they are; adds the answer to them. The error of the Chat call, which is
  // Cancelled after Ctrl-C.
  absl::StatusOr<ChatResult> Ask();

  // Sends each line read from `input_fd` as a user's turn until its end or ":quit". Lines that
  // begin with ":" are commands (":help" lists them); after an answer that calls tools, lines are
  // the tools' results. An error ends a conversation that is not typed by a person.
  absl::Status Converse(int input_fd);

 private:
  ChatSession(ChatSessionOptions options, v1::ChatRequest request, std::ostream& out,
              std::ostream& err);

  void StartAnswer();
  absl::StatusOr<ChatResult> Stream();  // the answer thread's work
  // Waits for one of: the answer's end, Ctrl-C, a line on input_fd (unless negative).
  void WaitForEvent(int input_fd);
  absl::StatusOr<ChatResult> TakeAnswer();
  void ReadLines(int input_fd);
  void HandleLine(const std::string& line);
  // Forgets every message past the first num_messages; the next lines are these calls' results, or
  // with none the user's.
  void BeginTurn(int num_messages, std::vector<v1::ToolCall> calls);
  void FinishThinking();
  void CancelAnswer();
  void PrintPrompt();

  const ChatSessionOptions options_;
  v1::ChatRequest request_;
  const int num_first_messages_;  // those ":reset" keeps
  int turn_start_;                // messages before the turn that lines are now collected for
  std::vector<v1::ToolCall> turn_calls_;  // that it answers
  std::ostream& out_;
  std::ostream& err_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  int signal_fd_ = -1;
  int done_fd_ = -1;  // eventfd: the answer has ended

  std::thread answer_thread_;                         // joinable while an answer streams
  std::optional<absl::StatusOr<ChatResult>> answer_;  // written by it before done_fd_
  absl::Mutex mutex_;
  std::unique_ptr<grpc::ClientContext> context_ ABSL_GUARDED_BY(mutex_);
  std::string request_id_ ABSL_GUARDED_BY(mutex_);  // empty until `started` came

  LineBuffer input_;
  std::deque<std::string> lines_;  // typed and not yet used
  bool input_open_ = true;
  bool quit_ = false;
  std::deque<v1::ToolCall> open_calls_;  // of turn_calls_: those without a result yet
};

}  // namespace conclave
