#include "client/private_worker.h"

#include <poll.h>
#include <signal.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/server_event.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

constexpr absl::Duration kStopDeadline = absl::Seconds(10);

}  // namespace

PrivateWorker::PrivateWorker(ChildProcess child) : child_(std::move(child)) {}

absl::StatusOr<std::unique_ptr<PrivateWorker>> PrivateWorker::Start(std::vector<std::string> argv,
                                                                    absl::Duration ready_deadline) {
  argv.insert(argv.end(), {"--listen", "127.0.0.1:0"});
  ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Start(argv));
  std::unique_ptr<PrivateWorker> worker(new PrivateWorker(std::move(child)));
  worker->pump_ = std::thread([raw = worker.get()] { raw->PumpPipes(); });
  RETURN_IF_ERROR(worker->WaitReady(ready_deadline));
  return worker;
}

absl::Status PrivateWorker::WaitReady(absl::Duration deadline) {
  absl::MutexLock lock(&mutex_);
  const auto settled = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ready_ || ended_; };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&settled), deadline)) {
    return absl::DeadlineExceededError(
        absl::StrCat("the worker was not ready within ", absl::FormatDuration(deadline)));
  }
  if (ready_ && listening_) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the worker ended before it was ready",
                   last_words_.empty() ? "" : absl::StrCat(": ", last_words_)));
}

void PrivateWorker::HandleLine(const std::string& line, bool is_event) {
  if (!is_event) {
    if (!line.empty()) last_words_ = line;
    return;
  }
  const absl::StatusOr<ServerEvent> event = ParseServerEvent(line);
  if (!event.ok()) {
    last_words_ = std::string(event.status().message());
  } else if (event->kind == ServerEvent::Kind::kListening) {
    target_ = event->grpc;
    listening_ = true;
  } else {
    ready_ = true;
  }
}

void PrivateWorker::PumpPipes() {
  LineBuffer out_lines, err_lines;
  bool out_open = true, err_open = true;
  while (out_open || err_open) {
    // A negative descriptor is passed over by poll.
    pollfd fds[] = {{out_open ? child_.stdout_fd() : -1, POLLIN, 0},
                    {err_open ? child_.stderr_fd() : -1, POLLIN, 0}};
    poll(fds, 2, -1);
    absl::MutexLock lock(&mutex_);
    if (out_open) {
      const std::string bytes = ReadAvailable(child_.stdout_fd(), &out_open);
      for (const std::string& line : out_lines.Append(bytes)) HandleLine(line, /*is_event=*/true);
    }
    if (err_open) {
      const std::string bytes = ReadAvailable(child_.stderr_fd(), &err_open);
      for (const std::string& line : err_lines.Append(bytes)) HandleLine(line, /*is_event=*/false);
    }
  }
  absl::MutexLock lock(&mutex_);
  HandleLine(err_lines.TakeRest(), /*is_event=*/false);
  ended_ = true;
}

PrivateWorker::~PrivateWorker() {
  child_.Signal(SIGTERM);
  {
    absl::MutexLock lock(&mutex_);
    if (!mutex_.AwaitWithTimeout(absl::Condition(&ended_), kStopDeadline)) child_.Signal(SIGKILL);
  }
  pump_.join();
}

}  // namespace conclave
