#include "client/status_watch.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/chat_printer.h"
#include "client/status_command.h"
#include "common/limits.h"
#include "rpc/channel.h"

namespace conclave {
namespace {

constexpr int kBarWidth = 30;
constexpr absl::Duration kTick = absl::Milliseconds(100);

// The other screen, cursor hidden and long lines cut instead of wrapped; and back.
constexpr char kEnter[] = "\x1b[?1049h\x1b[?25l\x1b[?7l";
constexpr char kLeave[] = "\x1b[?7h\x1b[?25h\x1b[?1049l";
// Drawn over what is there, which flickers less than clearing first.
constexpr char kHome[] = "\x1b[H";
constexpr char kClearLine[] = "\x1b[K\n";
constexpr char kClearRest[] = "\x1b[J";

std::string Bar(double share) {
  const auto filled = static_cast<int>(std::lround(std::clamp(share, 0.0, 1.0) * kBarWidth));
  return absl::StrCat("[", std::string(filled, '#'), std::string(kBarWidth - filled, '-'), "]");
}

double Share(uint64_t part, uint64_t all) {
  return all > 0 ? static_cast<double>(part) / static_cast<double>(all) : 0;
}

struct Totals {
  int workers = 0, ready = 0, shards = 0, shards_up = 0;
  uint64_t running = 0, waiting = 0, kv_used = 0, kv_total = 0;
  double tokens_per_second = 0;
};

Totals Sum(const v1::ClusterStatus& cluster) {
  Totals totals;
  totals.waiting = cluster.router().waiting();
  for (const v1::ClusterStatus::WorkerStatus& worker : cluster.workers()) {
    ++totals.workers;
    if (!worker.up()) continue;
    const v1::WorkerDescription& description = worker.description();
    totals.ready += description.ready();
    totals.running += description.running();
    totals.waiting += description.waiting();
    totals.kv_used += description.kv_blocks_used();
    totals.kv_total += description.kv_blocks_total();
    totals.tokens_per_second += description.tokens_per_second();
    // Each worker names the shards it uses; most often all workers use the same.
    totals.shards = std::max(totals.shards, description.shards_size());
    const auto up = std::count_if(description.shards().begin(), description.shards().end(),
                                  [](const v1::ShardState& shard) { return shard.up(); });
    totals.shards_up = std::max(totals.shards_up, static_cast<int>(up));
  }
  return totals;
}

// Of the requests that finished between the two looks, or since the router's start if none did.
std::string ThinkingLine(const v1::ClusterStatus::Router& now,
                         const v1::ClusterStatus::Router* before) {
  uint64_t thinking = now.thinking_tokens(), answer = now.answer_tokens();
  const char* when = "since the start";
  // Less than before: another router process.
  if (before != nullptr && thinking >= before->thinking_tokens() &&
      answer >= before->answer_tokens() &&
      thinking + answer > before->thinking_tokens() + before->answer_tokens()) {
    thinking -= before->thinking_tokens();
    answer -= before->answer_tokens();
    when = "in the last second";
  }
  const double share = Share(thinking, thinking + answer);
  return absl::StrFormat("thinking  %s %.0f %% of the tokens of requests that finished %s\n",
                         Bar(share), 100 * share, when);
}

// `text` and the time below it, in one line less than the terminal has: a newline in its last one
// would scroll the first away.
std::vector<std::string> FitTo(int rows, const std::string& text) {
  std::vector<std::string> lines = absl::StrSplit(absl::StripSuffix(text, "\n"), '\n');
  const std::string time = absl::FormatTime("%H:%M:%S", absl::Now(), absl::LocalTimeZone());
  const auto most = static_cast<size_t>(std::max(rows - 2, 1));
  if (lines.size() <= most) {
    if (lines.size() < most) lines.emplace_back();
    lines.push_back(absl::StrCat(time, "  Ctrl-C ends this"));
    return lines;
  }
  const size_t left_out = lines.size() - most;
  lines.resize(most);
  lines.push_back(absl::StrCat(time, "  ", left_out, " more lines; Ctrl-C ends this"));
  return lines;
}

}  // namespace

int TerminalRows() {
  winsize size = {};
  constexpr int kUsual = 24;
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 ? size.ws_row : kUsual;
}

std::string FormatWatch(const std::string& endpoint, const v1::ClusterStatus& cluster,
                        WatchHistory* history) {
  const Totals totals = Sum(cluster);
  history->most_tokens_per_second =
      std::max(history->most_tokens_per_second, totals.tokens_per_second);
  const double most = history->most_tokens_per_second;
  std::string text = absl::StrFormat(
      "conclave at %s: %s, up %.0f s; %d of %d workers ready, %d of %d shards up\n\n", endpoint,
      cluster.router().draining() ? "draining"
      : cluster.serving()         ? "serving"
                                  : "not serving",
      cluster.router().uptime_seconds(), totals.ready, totals.workers, totals.shards_up,
      totals.shards);
  absl::StrAppend(&text, "requests  ", totals.running, " running, ", totals.waiting, " waiting\n");
  absl::StrAppendFormat(&text, "tokens/s  %s %.1f, at most %.1f so far\n",
                        Bar(most > 0 ? totals.tokens_per_second / most : 0),
                        totals.tokens_per_second, most);
  absl::StrAppendFormat(
      &text, "KV cache  %s %.0f %%, %d of %d blocks\n", Bar(Share(totals.kv_used, totals.kv_total)),
      100 * Share(totals.kv_used, totals.kv_total), totals.kv_used, totals.kv_total);
  absl::StrAppend(
      &text, ThinkingLine(cluster.router(), history->last ? &history->last->router() : nullptr));
  history->last = cluster;
  return absl::StrCat(text, "\n", FormatCluster(endpoint, cluster));
}

absl::Status WatchStatus(const std::string& endpoint, std::ostream& out,
                         const std::function<bool()>& stop, const std::function<int()>& rows,
                         absl::Duration interval) {
  const auto stub = v1::Inference::NewStub(MakeChannel(endpoint));
  WatchHistory history;
  out << kEnter;
  while (!stop()) {
    const absl::Time next = absl::Now() + interval;
    const absl::StatusOr<v1::ClusterStatus> cluster =
        GetCluster(*stub, absl::Now() + std::max(interval, absl::Seconds(1)));
    const std::string text = cluster.ok()
                                 ? FormatWatch(endpoint, *cluster, &history)
                                 : absl::StrCat("conclave at ", endpoint, ": no answer (",
                                                std::string(cluster.status().message()), ")\n");
    out << kHome;
    // Names and errors come from other processes.
    for (const std::string& line : FitTo(rows(), text)) {
      out << SafeForTerminal(line) << kClearLine;
    }
    out << kClearRest << std::flush;
    while (!stop() && absl::Now() < next) {
      absl::SleepFor(std::min(kTick, next - absl::Now()));
    }
  }
  out << kLeave << std::flush;
  return absl::OkStatus();
}

}  // namespace conclave
