#pragma once

#include <poll.h>

#include <fstream>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/child_process.h"

namespace conclave {

// One server to keep running. The supervisor adds --listen, `http_flag` and its tier's targets to
// the arguments.
struct ProcessSpec {
  std::string name;                            // "shard-0": for people and for the log file
  std::vector<std::string> argv;               // argv[0] is the program's path
  std::string host = "127.0.0.1";              // that it listens on
  int grpc_port = 0;                           // 0: any; kept over restarts
  std::string http_flag = "--metrics_listen";  // where it serves /metrics, and an API if it has one
  int http_port = 0;
};

// Processes that need nothing of each other. They start once those of the tier before listen.
struct ProcessTier {
  std::string
      targets_flag;  // "--shards": gets the tier before as host:port,host:port; may be empty
  std::vector<ProcessSpec> processes;
};

struct SupervisorOptions {
  std::vector<ProcessTier> tiers;  // bottom first; stopped in the opposite order
  std::string log_dir;             // one file a process; empty: all on `err`, lines prefixed
  bool json_lines = false;         // the processes log JSON: a name becomes a member, not a prefix
  absl::Duration ready_deadline;   // from the start to every process ready
  absl::Duration drain_deadline;   // from SIGTERM to SIGKILL, for each tier
  int max_start_failures = 5;      // of one process, before the first "ready"
};

// Time to wait before starting a process again after `failures` ends in a row: 0.2 s doubling up
// to 10 s.
absl::Duration RestartBackoff(int failures);

// Starts every process, restarts each that ends, and stops them all on SIGINT, SIGTERM or SIGHUP.
// One thread: everything happens in Run, which waits in poll().
class Supervisor {
 public:
  // `out` gets the endpoints and what happens to processes, `err` the servers' log lines.
  Supervisor(SupervisorOptions options, std::ostream& out, std::ostream& err);
  ~Supervisor();

  // Returns when everything has stopped: OK after such a signal; Unavailable naming the
  // process and its last words if it failed max_start_failures times before all were ready,
  // InvalidArgument likewise if it did not like its flags;
  // DeadlineExceeded if they were not ready in time; Internal if the system gives no signals or
  // log files. Blocks these signals in the calling thread while it runs.
  absl::Status Run();

 private:
  enum class Phase { kStarting, kServing, kStopping };
  struct Process;

  // Each returns the first error that makes the cluster stop.
  absl::Status OpenLogs();
  absl::Status StartDue(absl::Time now);
  absl::Status Start(Process& process);
  absl::Status Reap(Process& process, absl::Time now);
  void ReadPipes(Process& process);
  void HandleEventLine(Process& process, const std::string& line);
  void HandleLogLine(Process& process, const std::string& line);
  std::string Named(const Process& process, const std::string& line) const;
  void AnnounceIfReady(absl::Time now);

  void BeginStop(absl::Time now);
  // Signals the topmost tier that still runs; kills it past its deadline.
  void ContinueStop(absl::Time now);
  bool AllGone() const;

  // Waits for a signal, a pipe or the next deadline, at most until `until`.
  void Wait(absl::Time until);
  absl::Time NextDeadline() const;
  void HandleSignals(absl::Time now);
  bool TierListens(size_t tier) const;
  std::string Targets(size_t tier) const;
  std::string Command() const;

  const SupervisorOptions options_;
  std::ostream& out_;
  std::ostream& err_;
  std::vector<std::vector<std::unique_ptr<Process>>> tiers_;
  Phase phase_ = Phase::kStarting;
  absl::Time started_;
  int signal_fd_ = -1;
  int stop_signals_ = 0;
  std::optional<size_t> stopping_tier_;  // the one that was told to stop last
  absl::Time kill_at_ = absl::InfiniteFuture();
};

}  // namespace conclave
