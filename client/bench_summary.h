#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "client/bench_options.h"
#include "client/load_generator.h"
#include "nlohmann/json.hpp"

namespace conclave {

// Values in rising order, and what is asked of them. All NaN where there are none.
class Distribution {
 public:
  explicit Distribution(std::vector<double> values = {});
  // 0..1; between two values by their distance, as numpy does.
  double Quantile(double share) const;
  double Mean() const;
  const std::vector<double>& values() const { return values_; }
  // {"mean", "min", "p50", "p90", "p99", "max"}; null for NaN.
  nlohmann::ordered_json ToJson() const;

 private:
  std::vector<double> values_;
};

// What a load measured. Latencies are in milliseconds, of requests that finished; a request's count
// from its arrival, so that waiting for room among `concurrency` is part of them.
struct BenchSummary {
  int64_t completed = 0, failed = 0, cut_short = 0;
  std::map<std::string, int64_t> errors;           // failed, by status code
  std::map<std::string, std::string> first_error;  // of each code, the first message
  double seconds = 0;
  int64_t peak_in_flight = 0;
  bool stopped = false;

  // Of requests that finished, as the server counts, but output_tokens: every id that was received.
  int64_t prompt_tokens = 0, cached_prompt_tokens = 0, output_tokens = 0;
  int64_t thinking_tokens = 0, answer_tokens = 0, failovers = 0;
  std::map<std::string, int64_t> thinking_ended_by;  // of requests that think

  Distribution ttft;   // arrival to first token
  Distribution ttfat;  // arrival to first token of the answer
  Distribution itl;    // one token to the next; tokens that come together share the time
  Distribution tpot;   // a request's mean of those
  Distribution e2e;    // arrival to end
  Distribution queue;  // arrival to sending; 0 in a closed loop

  int64_t good = 0;                       // finished within the SLO
  std::vector<double> tokens_per_second;  // received, in each second from the first sending

  double OutputRate() const;
};

BenchSummary Summarize(const BenchOptions& options, const LoadResult& result);

// One object: what was asked and what was measured. `model` is the name served.
nlohmann::ordered_json BenchJson(const BenchOptions& options, const std::string& model,
                                 const BenchSummary& summary);
// The same for people: lines, a table of latencies, and the plots.
std::string BenchText(const BenchOptions& options, const std::string& model,
                      const BenchSummary& summary);

}  // namespace conclave
