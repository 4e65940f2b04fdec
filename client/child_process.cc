#include "client/child_process.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace conclave {
namespace {

// What a pipe of Linux holds. Reading no more at a time keeps one talkative child from holding us.
constexpr size_t kMaxPipeBytes = 64 << 10;

struct Pipe {
  int read_end = -1;
  int write_end = -1;
  bool Open() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return false;
    read_end = ends[0];
    write_end = ends[1];
    return true;
  }
  void Close() {
    if (read_end >= 0) close(std::exchange(read_end, -1));
    if (write_end >= 0) close(std::exchange(write_end, -1));
  }
};

// The child's side of fork: only async-signal-safe calls. Reports errno through error_fd, which
// closes by itself when exec succeeds.
[[noreturn]] void BecomeProgram(char* const* argv, int out_fd, int err_fd, int error_fd,
                                pid_t parent) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // the parent died before prctl: no signal would come
  struct sigaction plain = {};
  plain.sa_handler = SIG_DFL;
  for (int signal_number : {SIGINT, SIGTERM, SIGCHLD, SIGPIPE, SIGHUP}) {
    sigaction(signal_number, &plain, nullptr);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null_fd = open("/dev/null", O_RDONLY);
  if (null_fd >= 0 && dup2(null_fd, STDIN_FILENO) >= 0 && dup2(out_fd, STDOUT_FILENO) >= 0 &&
      dup2(err_fd, STDERR_FILENO) >= 0) {
    execv(argv[0], argv);
  }
  const int error = errno;
  if (write(error_fd, &error, sizeof(error)) < 0) _exit(126);
  _exit(127);
}

// 0 once exec has succeeded, otherwise the errno the child reported.
int ReadExecError(int fd) {
  int error = 0;
  ssize_t count;
  do {
    count = read(fd, &error, sizeof(error));
  } while (count < 0 && errno == EINTR);
  return count == sizeof(error) ? error : 0;
}

}  // namespace

std::vector<std::string> LineBuffer::Append(absl::string_view bytes) {
  std::vector<std::string> lines;
  for (char c : bytes) {
    if (c != '\n') rest_.push_back(c);
    if (c == '\n' || rest_.size() == kMaxLineBytes) lines.push_back(TakeRest());
  }
  return lines;
}

std::string LineBuffer::TakeRest() { return std::exchange(rest_, std::string()); }

absl::StatusOr<ChildProcess> ChildProcess::Start(const std::vector<std::string>& argv) {
  Pipe out, err, error;
  absl::Cleanup close_pipes = [&] {
    out.Close();
    err.Close();
    error.Close();
  };
  if (!out.Open() || !err.Open() || !error.Open()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no pipe for ", argv[0], ": ", strerror(errno)));
  }
  std::vector<char*> raw_argv;
  for (const std::string& argument : argv) raw_argv.push_back(const_cast<char*>(argument.c_str()));
  raw_argv.push_back(nullptr);

  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot fork for ", argv[0], ": ", strerror(errno)));
  }
  if (pid == 0) {
    BecomeProgram(raw_argv.data(), out.write_end, err.write_end, error.write_end, parent);
  }
  close(std::exchange(error.write_end, -1));
  if (const int code = ReadExecError(error.read_end); code != 0) {
    waitpid(pid, nullptr, 0);
    return absl::NotFoundError(absl::StrCat("cannot run ", argv[0], ": ", strerror(code)));
  }
  fcntl(out.read_end, F_SETFL, O_NONBLOCK);
  fcntl(err.read_end, F_SETFL, O_NONBLOCK);
  return ChildProcess(pid, std::exchange(out.read_end, -1), std::exchange(err.read_end, -1));
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      stdout_fd_(std::exchange(other.stdout_fd_, -1)),
      stderr_fd_(std::exchange(other.stderr_fd_, -1)),
      wait_status_(std::exchange(other.wait_status_, std::nullopt)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this != &other) {
    Close();
    pid_ = std::exchange(other.pid_, -1);
    stdout_fd_ = std::exchange(other.stdout_fd_, -1);
    stderr_fd_ = std::exchange(other.stderr_fd_, -1);
    wait_status_ = std::exchange(other.wait_status_, std::nullopt);
  }
  return *this;
}

ChildProcess::~ChildProcess() { Close(); }

void ChildProcess::Close() {
  if (pid_ > 0 && !wait_status_) {
    Signal(SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  pid_ = -1;
  if (stdout_fd_ >= 0) close(std::exchange(stdout_fd_, -1));
  if (stderr_fd_ >= 0) close(std::exchange(stderr_fd_, -1));
}

void ChildProcess::Signal(int signal_number) {
  if (pid_ <= 0 || wait_status_) return;
  if (signal_number == SIGKILL) kill(-pid_, SIGKILL);
  kill(pid_, signal_number);
}

std::optional<int> ChildProcess::TryReap() {
  if (pid_ <= 0 || wait_status_) return wait_status_;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) == pid_) {
    kill(-pid_, SIGKILL);  // what it may have started itself
    wait_status_ = status;
  }
  return wait_status_;
}

std::string ReadAvailable(int fd, bool* open) {
  std::string bytes;
  char buffer[4096];
  *open = true;
  while (bytes.size() < kMaxPipeBytes) {
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count > 0) {
      bytes.append(buffer, static_cast<size_t>(count));
    } else if (count < 0 && errno == EINTR) {
      continue;
    } else {
      *open = count < 0 && errno == EAGAIN;
      break;
    }
  }
  return bytes;
}

std::string DescribeExit(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const int number = WTERMSIG(wait_status);
    return absl::StrCat("was killed by signal ", number, " (", strsignal(number), ")");
  }
  return absl::StrCat("exited with code ", WEXITSTATUS(wait_status));
}

absl::StatusOr<std::string> ExecutableDir() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  if (length <= 0 || length == static_cast<ssize_t>(sizeof(path))) {
    return absl::InternalError(absl::StrCat("cannot read /proc/self/exe: ", strerror(errno)));
  }
  const std::string full(path, static_cast<size_t>(length));
  return full.substr(0, full.rfind('/'));
}

}  // namespace conclave
