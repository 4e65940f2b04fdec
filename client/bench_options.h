#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/chat_command.h"

namespace conclave {

// Latencies that a good request keeps; not given: any.
struct BenchSlo {
  std::optional<double> ttft_ms = std::nullopt;   // time to first token
  std::optional<double> ttfat_ms = std::nullopt;  // time to first token of the answer
  std::optional<double> itl_ms = std::nullopt;    // mean inter-token latency of the request
  bool any() const { return ttft_ms || ttfat_ms || itl_ms; }
};

struct BenchOptions {
  RouterOptions router;
  std::string model;  // empty: the one served
  int64_t num_requests = 100;
  std::optional<int> concurrency;  // requests in flight at most; see Concurrency()
  std::optional<double> rate;      // arrivals a second, a Poisson process; not given: closed loop
  int input_len = 512;             // tokens of a prompt; of a chat, without the template's own
  int output_len = 128;
  double range_ratio = 0;     // lengths are uniform within +- this share of the two above
  int shared_prefix_len = 0;  // first tokens of input_len, the same in every prompt
  // Share of the requests that think. Given: requests are chats; otherwise they are token ids.
  std::optional<double> think_share;
  std::optional<int64_t> thinking_budget;  // of those; not given: half of output_len
  std::string prompts_file;                // a question a line, for chats instead of random text
  bool respect_eos = false;                // an answer may end before output_len
  std::optional<float> temperature;
  uint64_t seed = 1;
  int warmup = 1;  // requests before the clock starts
  BenchSlo slo;
  std::vector<std::string> plots = {"ttft", "throughput"};  // see kBenchPlots
  bool json = false;

  // In a closed loop 16 unless given; in an open loop what the router admits.
  int Concurrency() const;
  bool IsChat() const { return think_share.has_value() || !prompts_file.empty(); }
  int MaxInputLen() const;
  int MaxOutputLen() const;

  // InvalidArgument for values that are out of range or do not go together.
  absl::Status Validate() const;
};

inline constexpr const char* kBenchPlots[] = {"ttft", "ttfat", "itl", "e2e", "throughput", "none"};

}  // namespace conclave
