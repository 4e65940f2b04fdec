#include "client/chat_session.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <ostream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/chat_printer.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"

namespace conclave {
namespace {

// Lines pasted or piped faster than they are answered; past it we leave them in the pipe.
constexpr size_t kMaxPendingLines = 64;

constexpr absl::string_view kHelp =
    ":finish  end the thinking of the running answer and answer now\n"
    ":reset   forget the conversation\n"
    ":quit    leave (so does Ctrl-D); Ctrl-C stops the running answer\n"
    "/think and /no_think in a question are the model's own switches\n";

}  // namespace

ChatSession::ChatSession(ChatSessionOptions options, v1::ChatRequest request, std::ostream& out,
                         std::ostream& err)
    : options_(std::move(options)),
      request_(std::move(request)),
      num_first_messages_(request_.messages_size()),
      turn_start_(num_first_messages_),
      out_(out),
      err_(err) {}

absl::StatusOr<std::unique_ptr<ChatSession>> ChatSession::Open(ChatSessionOptions options,
                                                               v1::ChatRequest request,
                                                               std::ostream& out,
                                                               std::ostream& err) {
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupt, nullptr);
  std::unique_ptr<ChatSession> session(
      new ChatSession(std::move(options), std::move(request), out, err));
  session->signal_fd_ = signalfd(-1, &interrupt, SFD_NONBLOCK | SFD_CLOEXEC);
  session->done_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (session->signal_fd_ < 0 || session->done_fd_ < 0) {
    return absl::InternalError(absl::StrCat("no descriptor for events: ", strerror(errno)));
  }
  // After the mask: gRPC's threads must not take the signal either.
  session->stub_ = v1::Inference::NewStub(MakeChannel(session->options_.router.endpoint));
  return session;
}

ChatSession::~ChatSession() {
  CancelAnswer();
  if (answer_thread_.joinable()) answer_thread_.join();
  if (signal_fd_ >= 0) close(signal_fd_);
  if (done_fd_ >= 0) close(done_fd_);
}

void ChatSession::StartAnswer() {
  {
    absl::MutexLock lock(&mutex_);
    context_ = std::make_unique<grpc::ClientContext>();
    context_->set_deadline(
        absl::ToChronoTime(absl::Now() + absl::Seconds(options_.router.timeout_seconds)));
    request_id_.clear();
  }
  answer_.reset();
  answer_thread_ = std::thread([this] {
    answer_ = Stream();
    const uint64_t one = 1;
    if (write(done_fd_, &one, sizeof(one)) < 0) abort();  // an eventfd takes 2^64 - 2 of these
  });
}

absl::StatusOr<ChatResult> ChatSession::Stream() {
  grpc::ClientContext* context;
  {
    absl::MutexLock lock(&mutex_);
    context = context_.get();  // stays until TakeAnswer, after this thread
  }
  ChatPrinter printer(out_, options_.out_is_terminal);
  ChatTimes times(absl::Now());
  ChatResult result;
  absl::Status bad_event;
  const auto reader = stub_->Chat(context, request_);
  v1::ChatEvent event;
  while (reader->Read(&event)) {
    bad_event.Update(result.Add(event));
    if (event.has_started()) {
      absl::MutexLock lock(&mutex_);
      request_id_ = event.started().request_id();
    }
    times.Note(event, absl::Now());
    if (options_.print) printer.Print(event);
  }
  if (options_.print) printer.End();
  absl::Status status = FromGrpcStatus(reader->Finish());
  if (status.ok()) status = bad_event;
  if (status.ok() && !result.is_finished()) {
    status = absl::InternalError("the router ended the stream without a \"finished\" event");
  }
  RETURN_IF_ERROR(status);
  if (options_.stats) err_ << "[" << times.Summary(result.finished()) << "]" << std::endl;
  return result;
}

void ChatSession::CancelAnswer() {
  absl::MutexLock lock(&mutex_);
  if (context_) context_->TryCancel();
}

void ChatSession::WaitForEvent(int input_fd) {
  pollfd fds[] = {{signal_fd_, POLLIN, 0}, {done_fd_, POLLIN, 0}, {input_fd, POLLIN, 0}};
  poll(fds, input_fd >= 0 ? 3 : 2, -1);
  signalfd_siginfo info;
  if (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (answer_thread_.joinable()) {
      CancelAnswer();
    } else {
      quit_ = true;
    }
  }
  if (input_fd >= 0 && fds[2].revents != 0) ReadLines(input_fd);
}

absl::StatusOr<ChatResult> ChatSession::TakeAnswer() {
  answer_thread_.join();
  uint64_t count;
  if (read(done_fd_, &count, sizeof(count)) < 0) abort();  // it was written before the thread ended
  {
    absl::MutexLock lock(&mutex_);
    context_.reset();
    request_id_.clear();
  }
  absl::StatusOr<ChatResult> answer = *std::exchange(answer_, std::nullopt);
  if (answer.ok()) *request_.add_messages() = answer->AsMessage();
  if (absl::IsCancelled(answer.status())) return absl::CancelledError("the answer was stopped");
  return answer;
}

absl::StatusOr<ChatResult> ChatSession::Ask() {
  StartAnswer();
  pollfd done = {done_fd_, POLLIN, 0};
  while (poll(&done, 1, 0) == 0) WaitForEvent(-1);
  return TakeAnswer();
}

absl::Status ChatSession::Converse(int input_fd) {
  PrintPrompt();
  while (!quit_) {
    pollfd done = {done_fd_, POLLIN, 0};
    if (answer_thread_.joinable() && poll(&done, 1, 0) > 0) {
      const absl::StatusOr<ChatResult> answer = TakeAnswer();
      if (!answer.ok() && !options_.in_is_terminal) return answer.status();
      if (answer.ok()) {
        BeginTurn(request_.messages_size(), answer->tool_calls());
      } else {
        err_ << "conclave chat: " << answer.status().message() << std::endl;
        BeginTurn(turn_start_, turn_calls_);
      }
      PrintPrompt();
    }
    if (!answer_thread_.joinable() && !lines_.empty()) {
      const std::string line = std::move(lines_.front());
      lines_.pop_front();
      HandleLine(line);
      if (!answer_thread_.joinable()) PrintPrompt();
      continue;
    }
    if (!answer_thread_.joinable() && !input_open_) break;
    WaitForEvent(input_open_ && lines_.size() < kMaxPendingLines ? input_fd : -1);
  }
  return absl::OkStatus();
}

void ChatSession::ReadLines(int input_fd) {
  char buffer[4096];
  const ssize_t count = read(input_fd, buffer, sizeof(buffer));
  if (count < 0 && (errno == EINTR || errno == EAGAIN)) return;
  std::vector<std::string> lines;
  if (count > 0) {
    lines = input_.Append(absl::string_view(buffer, static_cast<size_t>(count)));
  } else {
    input_open_ = false;
    lines = {input_.TakeRest()};
  }
  for (std::string& line : lines) {
    const absl::string_view text = absl::StripAsciiWhitespace(line);
    if (text.empty()) continue;
    // These two concern the answer that runs now, so they pass the lines that wait for its end.
    if (answer_thread_.joinable() && text == ":finish") {
      FinishThinking();
    } else if (answer_thread_.joinable() && text == ":quit" && options_.in_is_terminal) {
      quit_ = true;
    } else {
      lines_.emplace_back(text);
    }
  }
}

void ChatSession::BeginTurn(int num_messages, std::vector<v1::ToolCall> calls) {
  request_.mutable_messages()->DeleteSubrange(num_messages,
                                              request_.messages_size() - num_messages);
  turn_start_ = num_messages;
  turn_calls_ = std::move(calls);
  open_calls_.assign(turn_calls_.begin(), turn_calls_.end());
}

void ChatSession::HandleLine(const std::string& line) {
  if (line == ":quit") {
    quit_ = true;
  } else if (line == ":reset") {
    BeginTurn(num_first_messages_, {});
  } else if (line == ":help") {
    err_ << kHelp << std::flush;
  } else if (line == ":finish") {
    err_ << "no answer is running" << std::endl;
  } else if (absl::StartsWith(line, ":")) {
    err_ << "no such command: " << line << " (:help lists them)" << std::endl;
  } else {
    v1::ChatMessage* message = request_.add_messages();
    message->set_content(line);
    message->set_role(open_calls_.empty() ? "user" : "tool");
    if (!open_calls_.empty()) {
      message->set_tool_call_id(open_calls_.front().id());
      open_calls_.pop_front();
    }
    if (open_calls_.empty()) StartAnswer();
  }
}

void ChatSession::FinishThinking() {
  v1::ControlRequest control;
  control.set_finish_thinking(true);
  {
    absl::MutexLock lock(&mutex_);
    control.set_request_id(request_id_);
  }
  if (control.request_id().empty()) {
    err_ << "the answer has not begun yet" << std::endl;
    return;
  }
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + limits::kControlDeadline));
  v1::ControlResponse response;
  const absl::Status status = FromGrpcStatus(stub_->Control(&context, control, &response));
  if (!status.ok()) err_ << "conclave chat: " << status.message() << std::endl;
}

void ChatSession::PrintPrompt() {
  if (!options_.in_is_terminal || !lines_.empty() || !input_open_) return;
  if (open_calls_.empty()) {
    out_ << "\n> " << std::flush;
  } else {
    out_ << "\nresult of " << SafeForTerminal(open_calls_.front().name()) << "> " << std::flush;
  }
}

}  // namespace conclave
