#include "client/supervisor.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <ostream>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/server_event.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

// A process that has served this long starts with a short backoff again.
constexpr absl::Duration kStableAfter = absl::Seconds(10);
constexpr int kUsageExitCode = 2;  // ParseFlags'

std::string Seconds(absl::Duration duration) {
  return absl::StrFormat("%.1f s", absl::ToDoubleSeconds(duration));
}

}  // namespace

absl::Duration RestartBackoff(int failures) {
  constexpr int kDoublings = 6;  // 0.2 s * 2^6 is past 10 s
  const int doublings = std::clamp(failures - 1, 0, kDoublings);
  return std::min(absl::Milliseconds(200) * (1 << doublings), absl::Seconds(10));
}

struct Supervisor::Process {
  Process(ProcessSpec process_spec, size_t tier_idx)
      : spec(std::move(process_spec)), tier(tier_idx) {}

  ProcessSpec spec;
  size_t tier;
  std::optional<ChildProcess> child;
  bool out_open = false, err_open = false;
  LineBuffer out_lines, err_lines;
  std::ofstream log;
  std::string last_words;  // last line on its standard error

  bool known = false;  // it has listened once: its ports are in spec
  bool ready = false;
  int failures = 0;  // ends in a row, none of them after kStableAfter of serving
  absl::Time start_at = absl::InfinitePast();  // when it is to be started, while there is no child
  absl::Time ready_since;
};

Supervisor::Supervisor(SupervisorOptions options, std::ostream& out, std::ostream& err)
    : options_(std::move(options)), out_(out), err_(err) {
  for (size_t tier = 0; tier < options_.tiers.size(); ++tier) {
    tiers_.emplace_back();
    for (const ProcessSpec& spec : options_.tiers[tier].processes) {
      tiers_.back().push_back(std::make_unique<Process>(spec, tier));
    }
  }
}

Supervisor::~Supervisor() {
  if (signal_fd_ >= 0) close(signal_fd_);
}

absl::Status Supervisor::OpenLogs() {
  if (options_.log_dir.empty()) return absl::OkStatus();
  for (auto& tier : tiers_) {
    for (auto& process : tier) {
      const std::string path = absl::StrCat(options_.log_dir, "/", process->spec.name, ".log");
      process->log.open(path, std::ios::app);
      if (!process->log) return absl::InternalError(absl::StrCat("cannot write ", path));
    }
  }
  return absl::OkStatus();
}

absl::Status Supervisor::Run() {
  RETURN_IF_ERROR(OpenLogs());
  sigset_t watched, before;
  sigemptyset(&watched);
  for (int number : {SIGINT, SIGTERM, SIGCHLD}) sigaddset(&watched, number);
  // A terminal that closes; not if nohup wants it ignored.
  struct sigaction hangup = {};
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaddset(&watched, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &watched, &before);
  absl::Cleanup restore = [&] { pthread_sigmask(SIG_SETMASK, &before, nullptr); };
  signal_fd_ = signalfd(-1, &watched, SFD_NONBLOCK | SFD_CLOEXEC);
  if (signal_fd_ < 0) return absl::InternalError(absl::StrCat("signalfd: ", strerror(errno)));

  started_ = absl::Now();
  absl::Status result;
  while (phase_ != Phase::kStopping || !AllGone()) {
    const absl::Time now = absl::Now();
    absl::Status step;
    if (phase_ == Phase::kStopping) {
      ContinueStop(now);
    } else {
      step = StartDue(now);
      AnnounceIfReady(now);
      if (step.ok() && phase_ == Phase::kStarting && now > started_ + options_.ready_deadline) {
        step = absl::DeadlineExceededError(
            absl::StrCat("the cluster was not ready within ", Seconds(options_.ready_deadline)));
      }
    }
    if (step.ok()) Wait(NextDeadline());
    HandleSignals(absl::Now());
    for (auto& tier : tiers_) {
      for (auto& process : tier) {
        ReadPipes(*process);
        step.Update(Reap(*process, absl::Now()));
      }
    }
    if (!step.ok() && phase_ != Phase::kStopping) {
      result = step;
      BeginStop(absl::Now());
    }
  }
  out_ << "Conclave has stopped." << std::endl;
  return result;
}

bool Supervisor::TierListens(size_t tier) const {
  return std::all_of(tiers_[tier].begin(), tiers_[tier].end(),
                     [](const auto& process) { return process->known; });
}

std::string Supervisor::Targets(size_t tier) const {
  return absl::StrJoin(tiers_[tier], ",", [](std::string* text, const auto& process) {
    absl::StrAppend(text, process->spec.host, ":", process->spec.grpc_port);
  });
}

absl::Status Supervisor::StartDue(absl::Time now) {
  for (size_t tier = 0; tier < tiers_.size(); ++tier) {
    for (auto& process : tiers_[tier]) {
      if (process->child || process->start_at > now) continue;
      const absl::Status started = Start(*process);
      if (started.ok()) continue;
      // A program that cannot be run at all will not run later. Once the cluster serves, the others
      // go on and the machine may be short of processes only for a while.
      if (phase_ == Phase::kStarting) return started;
      process->start_at = now + RestartBackoff(++process->failures);
      err_ << started.message() << std::endl;
    }
    if (!TierListens(tier)) break;  // the next one needs its ports
  }
  return absl::OkStatus();
}

absl::Status Supervisor::Start(Process& process) {
  const ProcessSpec& spec = process.spec;
  std::vector<std::string> argv = spec.argv;
  argv.insert(argv.end(), {"--listen", absl::StrCat(spec.host, ":", spec.grpc_port)});
  argv.insert(argv.end(), {spec.http_flag, absl::StrCat(spec.host, ":", spec.http_port)});
  const std::string& targets_flag = options_.tiers[process.tier].targets_flag;
  if (!targets_flag.empty()) {
    argv.insert(argv.end(), {targets_flag, Targets(process.tier - 1)});
  }
  ASSIGN_OR_RETURN(process.child, ChildProcess::Start(argv));
  process.out_open = process.err_open = true;
  process.ready = false;
  process.last_words.clear();
  process.start_at = absl::InfiniteFuture();
  if (process.failures > 0) {
    out_ << spec.name << " starts again, pid " << process.child->pid() << std::endl;
  }
  return absl::OkStatus();
}

absl::Status Supervisor::Reap(Process& process, absl::Time now) {
  if (!process.child) return absl::OkStatus();
  const std::optional<int> exit_status = process.child->TryReap();
  if (!exit_status) return absl::OkStatus();
  ReadPipes(process);  // its last words may have come between the read and its end
  HandleLogLine(process, process.err_lines.TakeRest());
  const bool was_stable = process.ready && now - process.ready_since >= kStableAfter;
  process.child.reset();
  process.out_lines.TakeRest();
  process.ready = false;
  if (phase_ == Phase::kStopping) {
    out_ << process.spec.name << " has stopped" << std::endl;
    return absl::OkStatus();
  }
  process.failures = was_stable ? 1 : process.failures + 1;
  const std::string what =
      absl::StrCat(process.spec.name, " ", DescribeExit(*exit_status),
                   process.last_words.empty() ? "" : absl::StrCat(": ", process.last_words));
  // Flags that are wrong are as wrong the next time.
  const bool wrong_flags = WIFEXITED(*exit_status) && WEXITSTATUS(*exit_status) == kUsageExitCode;
  if (phase_ == Phase::kStarting && wrong_flags) return absl::InvalidArgumentError(what);
  if (phase_ == Phase::kStarting && process.failures >= options_.max_start_failures) {
    return absl::UnavailableError(
        absl::StrCat(what, " (gave up after ", process.failures, " attempts)"));
  }
  const absl::Duration backoff = RestartBackoff(process.failures);
  process.start_at = now + backoff;
  out_ << what << "; starting it again in " << Seconds(backoff) << std::endl;
  return absl::OkStatus();
}

void Supervisor::ReadPipes(Process& process) {
  if (!process.child) return;
  if (process.out_open) {
    const std::string bytes = ReadAvailable(process.child->stdout_fd(), &process.out_open);
    for (const std::string& line : process.out_lines.Append(bytes)) HandleEventLine(process, line);
  }
  if (process.err_open) {
    const std::string bytes = ReadAvailable(process.child->stderr_fd(), &process.err_open);
    for (const std::string& line : process.err_lines.Append(bytes)) HandleLogLine(process, line);
  }
}

void Supervisor::HandleEventLine(Process& process, const std::string& line) {
  const absl::StatusOr<ServerEvent> event = ParseServerEvent(line);
  if (!event.ok()) {
    HandleLogLine(process, std::string(event.status().message()));
    return;
  }
  if (event->kind == ServerEvent::Kind::kReady) {
    process.ready = true;
    process.ready_since = absl::Now();
    if (phase_ == Phase::kServing) out_ << process.spec.name << " is ready again" << std::endl;
    return;
  }
  process.spec.grpc_port = event->grpc_port;
  process.spec.http_port = event->metrics_port;
  if (!std::exchange(process.known, true)) {
    const std::string http =
        event->http.empty() ? "" : absl::StrCat("   HTTP http://", event->http, "/v1");
    out_ << absl::StreamFormat("%-9s gRPC %s%s   metrics http://%s/metrics   pid %d",
                               process.spec.name, event->grpc, http, event->metrics,
                               process.child->pid())
         << std::endl;
  }
}

std::string Supervisor::Named(const Process& process, const std::string& line) const {
  if (options_.json_lines && line[0] == '{') {  // still one object, with one member more
    return absl::StrCat("{\"name\":\"", process.spec.name, "\",", line.substr(1));
  }
  return absl::StrCat("[", process.spec.name, "] ", line);
}

void Supervisor::HandleLogLine(Process& process, const std::string& line) {
  if (line.empty()) return;
  process.last_words = line;
  if (process.log.is_open()) {
    process.log << line << std::endl;
  } else {
    err_ << Named(process, line) << std::endl;
  }
}

void Supervisor::AnnounceIfReady(absl::Time now) {
  if (phase_ != Phase::kStarting) return;
  for (const auto& tier : tiers_) {
    for (const auto& process : tier) {
      if (!process->ready) return;
    }
  }
  phase_ = Phase::kServing;
  out_ << "Conclave is ready after " << Seconds(now - started_) << ". Try: " << Command()
       << std::endl;
}

std::string Supervisor::Command() const {
  const ProcessSpec& door = tiers_.back().front()->spec;
  const bool any_address = door.host == "0.0.0.0" || door.host == "[::]";
  return absl::StrCat("conclave chat --endpoint ", any_address ? "127.0.0.1" : door.host, ":",
                      door.grpc_port);
}

void Supervisor::BeginStop(absl::Time now) {
  phase_ = Phase::kStopping;
  ContinueStop(now);
}

void Supervisor::ContinueStop(absl::Time now) {
  size_t tier = tiers_.size();
  while (tier > 0 && std::none_of(tiers_[tier - 1].begin(), tiers_[tier - 1].end(),
                                  [](const auto& process) { return process->child.has_value(); })) {
    --tier;
  }
  if (tier == 0) return;
  --tier;
  const bool told_already = stopping_tier_ == tier;
  if (!told_already) {
    stopping_tier_ = tier;
    kill_at_ = now + options_.drain_deadline;
  }
  for (auto& process : tiers_[tier]) {
    if (!process->child) continue;
    if (!told_already) process->child->Signal(SIGTERM);
    if (now >= kill_at_) {
      out_ << process->spec.name << " did not stop within " << Seconds(options_.drain_deadline)
           << " and is killed" << std::endl;
      process->child->Signal(SIGKILL);
    }
  }
  if (now >= kill_at_) kill_at_ = absl::InfiniteFuture();
}

bool Supervisor::AllGone() const {
  return std::all_of(tiers_.begin(), tiers_.end(), [](const auto& tier) {
    return std::none_of(tier.begin(), tier.end(),
                        [](const auto& process) { return process->child.has_value(); });
  });
}

void Supervisor::HandleSignals(absl::Time now) {
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo == SIGCHLD) continue;  // it has ended poll(); Reap looks at every child
    ++stop_signals_;
    if (stop_signals_ == 1 && phase_ != Phase::kStopping) {
      out_ << "Conclave drains and stops; once more kills it." << std::endl;
      BeginStop(now);
    } else {
      for (auto& tier : tiers_) {
        for (auto& process : tier) {
          if (process->child) process->child->Signal(SIGKILL);
        }
      }
    }
  }
}

absl::Time Supervisor::NextDeadline() const {
  if (phase_ == Phase::kStopping) return kill_at_;
  absl::Time next = absl::InfiniteFuture();
  if (phase_ == Phase::kStarting) next = started_ + options_.ready_deadline;
  for (const auto& tier : tiers_) {
    for (const auto& process : tier) {
      // start_at of a tier whose turn has not come lies in the past: it waits for an event.
      if (!process->child && process->start_at != absl::InfinitePast()) {
        next = std::min(next, process->start_at);
      }
    }
  }
  return next;
}

void Supervisor::Wait(absl::Time until) {
  std::vector<pollfd> fds = {{signal_fd_, POLLIN, 0}};
  for (const auto& tier : tiers_) {
    for (const auto& process : tier) {
      if (!process->child) continue;
      if (process->out_open) fds.push_back({process->child->stdout_fd(), POLLIN, 0});
      if (process->err_open) fds.push_back({process->child->stderr_fd(), POLLIN, 0});
    }
  }
  const absl::Duration left = std::max(until - absl::Now(), absl::ZeroDuration());
  // Rounded up, so that the deadline has passed when poll returns. A minute at most: poll's
  // argument is an int of milliseconds.
  const int64_t timeout_ms = absl::ToInt64Milliseconds(std::min(left, absl::Minutes(1))) + 1;
  poll(fds.data(), fds.size(), static_cast<int>(timeout_ms));
}

}  // namespace conclave
