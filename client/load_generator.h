#pragma once

#include <grpcpp/channel.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/conclave/v1/inference.pb.h"

namespace conclave {

// A request to be sent, and when: counted from the start of the load.
struct LoadRequest {
  std::variant<v1::GenerateRequest, v1::ChatRequest> request;
  bool thinks = false;
  absl::Duration arrival;  // open loop; zero: as soon as there is room
};

// Ids that came together.
struct TokenArrival {
  int64_t at_ns = 0;  // since the start of the load
  int32_t num_ids = 0;
};

// What became of a request. Times count from the start of the load.
struct RequestRecord {
  bool thinks = false;
  bool cut_short = false;   // cancelled because the load was stopped
  absl::Duration arrival;   // when it was due; in a closed loop, when it was sent
  absl::Duration sent;      // later than `arrival` if `concurrency` requests were in flight
  absl::Duration finished;  // the call's end, whatever its status
  std::vector<TokenArrival> tokens;
  std::optional<absl::Duration> first_answer;  // first id that is not thinking
  absl::Status status;
  v1::Finished report;  // of a request whose status is OK

  int64_t num_tokens() const;
};

struct LoadOptions {
  std::vector<std::shared_ptr<grpc::Channel>> channels;  // requests take turns at them
  int concurrency = 1;                                   // requests in flight at most
  absl::Duration timeout;                                // of one request
};

struct LoadProgress {
  int64_t total = 0, finished = 0, failed = 0, in_flight = 0;
  int64_t tokens = 0;  // received
  absl::Duration elapsed;
};

struct LoadResult {
  std::vector<RequestRecord> records;  // of the requests that were sent, in order
  absl::Duration elapsed;              // from the first request's sending to the last one's end
  int64_t peak_in_flight = 0;
  bool stopped = false;  // before every request was sent and finished
};

// Sends the requests in order, each at its arrival and never more than `concurrency` at once, and
// blocks until all have ended. About ten times a second it calls `progress` and asks `stop`;
// once that is true it sends no more and cancels what is in flight. A request that fails has its
// status in its record; the load goes on.
LoadResult RunLoad(const LoadOptions& options, std::vector<LoadRequest> requests,
                   const std::function<void(const LoadProgress&)>& progress,
                   const std::function<bool()>& stop);

}  // namespace conclave
