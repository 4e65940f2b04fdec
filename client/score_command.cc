#include "client/score_command.h"

#include <grpcpp/client_context.h>

#include <deque>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/chat_result.h"
#include "client/child_process.h"
#include "client/private_worker.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"

namespace conclave {
namespace {

// Lines at the worker at a time: enough to fill its steps, few enough that a huge input file is
// read as it is answered.
constexpr size_t kMaxLinesInFlight = 16;

absl::StatusOr<std::vector<float>> ScoreIds(v1::Worker::Stub& worker, int64_t line_number,
                                            const std::vector<uint32_t>& ids,
                                            absl::Duration timeout) {
  v1::TokenRequest request;
  request.set_request_id(absl::StrCat("score-", line_number));
  request.mutable_prompt_ids()->Add(ids.begin(), ids.end());
  request.set_prompt_logprobs(true);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  const auto reader = worker.Generate(&context, request);
  v1::TokenEvent event;
  std::vector<float> logprobs;
  while (reader->Read(&event)) {
    logprobs.insert(logprobs.end(), event.prompt_logprobs().begin(), event.prompt_logprobs().end());
  }
  RETURN_IF_ERROR(FromGrpcStatus(reader->Finish()));
  if (logprobs.size() != ids.size() - 1) {
    return absl::InternalError(
        absl::StrCat("the worker sent ", logprobs.size(), " logprobs, want ", ids.size() - 1));
  }
  return logprobs;
}

}  // namespace

absl::StatusOr<std::vector<uint32_t>> ParseScoreLine(absl::string_view line) {
  const nlohmann::json object = nlohmann::json::parse(line.begin(), line.end(), nullptr,
                                                      /*allow_exceptions=*/false);
  if (object.is_discarded()) return absl::InvalidArgumentError("not JSON");
  if (!object.is_object() || !object.contains("ids") || !object["ids"].is_array()) {
    return absl::InvalidArgumentError("\"ids\" is missing, want {\"ids\": [1, 2, 3]}");
  }
  std::vector<uint32_t> ids;
  for (const nlohmann::json& id : object["ids"]) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > UINT32_MAX) {
      return absl::InvalidArgumentError(absl::StrCat("ids[", ids.size(), "] is ", ToLine(id),
                                                     ", want a whole number of 0..", UINT32_MAX));
    }
    ids.push_back(id.get<uint32_t>());
  }
  if (ids.empty()) return absl::InvalidArgumentError("\"ids\" is empty, want at least one id");
  return ids;
}

absl::Status ScoreLines(v1::Worker::Stub& worker, const ScoreOptions& options, std::istream& in,
                        std::ostream& out) {
  using Score = absl::StatusOr<std::vector<float>>;
  std::deque<std::pair<int64_t, std::future<Score>>> in_flight;
  int64_t num_lines = 0, num_answered = 0, num_failed = 0;
  const auto answer_first = [&] {
    const auto [line_number, score] =
        std::pair(in_flight.front().first, in_flight.front().second.get());
    in_flight.pop_front();
    nlohmann::ordered_json json;
    if (score.ok()) {
      json["logprobs"] = *score;
    } else {
      json["error"] = absl::StrCat("line ", line_number, ": ", score.status().message());
      ++num_failed;
    }
    ++num_answered;
    out << ToLine(json) << std::endl;
  };
  std::string line;
  while (std::getline(in, line)) {
    ++num_lines;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (in_flight.size() == kMaxLinesInFlight) answer_first();
    in_flight.emplace_back(
        num_lines, std::async(std::launch::async, [&worker, &options, line, num_lines]() -> Score {
          ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, ParseScoreLine(line));
          return ScoreIds(worker, num_lines, ids, absl::Seconds(options.timeout_seconds));
        }));
  }
  while (!in_flight.empty()) answer_first();
  if (num_failed == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(num_failed, " of ", num_answered, " lines could not be scored"));
}

absl::Status RunScore(const ScoreOptions& options, std::istream& in, std::ostream& out) {
  std::string bin_dir = options.bin_dir;
  if (bin_dir.empty()) {
    ASSIGN_OR_RETURN(bin_dir, ExecutableDir());
  }
  std::vector<std::string> argv = {absl::StrCat(bin_dir, "/conclave-worker"),
                                   "--model",
                                   options.model,
                                   "--log_level",
                                   "error",
                                   "--cpu_isa",
                                   options.cpu_isa,
                                   "--weight_dtype",
                                   options.weight_dtype};
  if (options.threads > 0) argv.insert(argv.end(), {"--threads", absl::StrCat(options.threads)});
  ASSIGN_OR_RETURN(const std::unique_ptr<PrivateWorker> worker,
                   PrivateWorker::Start(std::move(argv), absl::Seconds(options.ready_seconds)));
  const auto stub = v1::Worker::NewStub(MakeChannel(worker->target()));
  return ScoreLines(*stub, options, in, out);
}

}  // namespace conclave
