#pragma once

#include <cstdint>
#include <istream>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/conclave/v1/worker.grpc.pb.h"

namespace conclave {

struct ScoreOptions {
  std::string model;
  int threads = 0;  // 0: one per core
  std::string cpu_isa = "auto";
  std::string weight_dtype = "auto";
  int ready_seconds = 600;    // to load the model
  int timeout_seconds = 600;  // of one line
  std::string bin_dir;        // where conclave-worker is; empty: beside this program
};

// The ids of a line {"ids": [1, 2, 3]}; other keys are ignored. InvalidArgument.
absl::StatusOr<std::vector<uint32_t>> ParseScoreLine(absl::string_view line);

// Answers each line of `in` that is not empty with one of `out`, in order: {"logprobs": [...]},
// natural logarithms of ids[1..] given the ids before them, or {"error": "line N: ..."}. Several
// lines are computed at once. InvalidArgument at the end if any line failed.
absl::Status ScoreLines(v1::Worker::Stub& worker, const ScoreOptions& options, std::istream& in,
                        std::ostream& out);

// `conclave score`: ScoreLines on a worker of our own, which is started and stopped here. The
// errors of PrivateWorker::Start and ScoreLines.
absl::Status RunScore(const ScoreOptions& options, std::istream& in, std::ostream& out);

}  // namespace conclave
