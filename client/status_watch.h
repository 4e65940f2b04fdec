#pragma once

#include <functional>
#include <iosfwd>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/conclave/v1/inference.pb.h"

namespace conclave {

// What the view keeps from one look to the next.
struct WatchHistory {
  std::optional<v1::ClusterStatus> last;
  double most_tokens_per_second = 0;  // of all looks
};

// One look: totals with bars, then a line a process. `history` is brought up to date.
std::string FormatWatch(const std::string& endpoint, const v1::ClusterStatus& cluster,
                        WatchHistory* history);

// `conclave status --watch` on a terminal: draws FormatWatch each second on the terminal's second
// screen until `stop`, which is asked ten times a second, is true; then the first screen is back.
// A cluster that does not answer is said so, and asked again. Of a view that is longer than the
// terminal's `rows`, asked before each drawing, the beginning is shown, and how much is missing;
// long lines are cut by the terminal. Always OK.
absl::Status WatchStatus(const std::string& endpoint, std::ostream& out,
                         const std::function<bool()>& stop, const std::function<int()>& rows,
                         absl::Duration interval = absl::Seconds(1));

// The lines of the terminal that is standard output; 24 where it does not say.
int TerminalRows();

}  // namespace conclave
