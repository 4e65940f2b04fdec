#pragma once

#include <functional>
#include <iosfwd>
#include <string>

#include "absl/status/status.h"
#include "client/bench_options.h"
#include "client/load_generator.h"

namespace conclave {

// "[#####-----]  50/100  12.3 s  210 tokens/s  8 in flight  0 failed", without a line's end.
std::string FormatBenchProgress(const LoadProgress& progress);

// `conclave bench`: measures a cluster through its public API. Prints the report to `out`, and a
// progress bar to `err` if that is a terminal. `stop` is asked about ten times a second; once it is
// true, requests in flight are cancelled and what was measured so far is printed.
// InvalidArgument: options.Validate(), or lengths past the model's context. Unavailable: nobody
// answers. Cancelled: stopped. Otherwise Internal if requests failed, after the report, or the
// errors of GetModel, MakeBenchRequests and a warm-up request.
absl::Status RunBench(const BenchOptions& options, std::ostream& out, std::ostream& err,
                      bool err_is_terminal, const std::function<bool()>& stop);

}  // namespace conclave
