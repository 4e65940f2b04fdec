#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace conclave {

// Splits what a pipe delivers into lines. A line longer than kMaxLineBytes is handed out in pieces
// of that size, so that a child cannot make us hold more.
class LineBuffer {
 public:
  static constexpr size_t kMaxLineBytes = 64 << 10;

  // Adds bytes; returns the lines they complete, without their newlines.
  std::vector<std::string> Append(absl::string_view bytes);
  // What came after the last newline; for when the pipe has closed.
  std::string TakeRest();

 private:
  std::string rest_;
};

// A program started by us, with its standard output and standard error on pipes. It leads its own
// process group, so that a terminal's Ctrl-C reaches only us, and the kernel kills it when the
// thread that started it dies, however that happens: start children from the main thread.
class ChildProcess {
 public:
  // Runs argv[0] (a path, not searched in PATH) with stdin from /dev/null. Call it while this
  // process has no other thread that matters to the child: only the calling thread is copied.
  // NotFound: no such program or not executable. ResourceExhausted: no process or pipe to be had.
  static absl::StatusOr<ChildProcess> Start(const std::vector<std::string>& argv);

  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  // Kills the whole group and waits for the process, if it has not been reaped.
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  // Non-blocking read ends; they belong to this object.
  int stdout_fd() const { return stdout_fd_; }
  int stderr_fd() const { return stderr_fd_; }

  // Sends a signal to the process, or with SIGKILL to its whole group. Nothing once reaped.
  void Signal(int signal_number);

  // The process's wait status (see waitpid) once it has ended, nullopt while it runs. Never blocks.
  std::optional<int> TryReap();

 private:
  ChildProcess(pid_t pid, int stdout_fd, int stderr_fd)
      : pid_(pid), stdout_fd_(stdout_fd), stderr_fd_(stderr_fd) {}
  void Close();

  pid_t pid_ = -1;
  int stdout_fd_ = -1;
  int stderr_fd_ = -1;
  std::optional<int> wait_status_;
};

// Reads what a non-blocking pipe holds now, about 64 KiB at most. Sets *open to false at its end.
std::string ReadAvailable(int fd, bool* open);

// "exited with code 1", "was killed by signal 9 (Killed)".
std::string DescribeExit(int wait_status);

// The folder of the running executable, where the other binaries are too. Internal if the system
// does not say.
absl::StatusOr<std::string> ExecutableDir();

}  // namespace conclave
