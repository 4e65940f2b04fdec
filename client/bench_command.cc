#include "client/bench_command.h"

#include <grpcpp/client_context.h>

#include <algorithm>
#include <iterator>
#include <ostream>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/bench_prompts.h"
#include "client/bench_summary.h"
#include "client/chat_result.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "proto/conclave/v1/inference.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"

namespace conclave {
namespace {

constexpr int kBarWidth = 30;
// One HTTP/2 connection carries this many streams without its lock being felt.
constexpr int kStreamsPerChannel = 64;
constexpr int kMaxChannels = 8;
// A chat template's own tokens around a message: 8 for Qwen3's, 4 more for an empty think block.
constexpr int kTemplateTokens = 16;

std::vector<std::shared_ptr<grpc::Channel>> MakeChannels(const BenchOptions& options) {
  const int count = std::clamp(
      (options.Concurrency() + kStreamsPerChannel - 1) / kStreamsPerChannel, 1, kMaxChannels);
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < count; ++i) channels.push_back(MakeChannel(options.router.endpoint));
  return channels;
}

absl::StatusOr<v1::GetModelResponse> GetModel(v1::Inference::Stub& stub,
                                              const std::string& endpoint) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + limits::kDescribeDeadline));
  v1::GetModelResponse response;
  const absl::Status status =
      FromGrpcStatus(stub.GetModel(&context, v1::GetModelRequest(), &response));
  if (status.ok()) return response;
  return absl::Status(status.code(),
                      absl::StrCat("no model at ", endpoint, ": ", std::string(status.message())));
}

absl::Status CheckContext(const BenchOptions& options, int64_t max_context) {
  const int64_t input = options.prompts_file.empty() ? options.MaxInputLen() : 0;
  const int64_t tokens = input + options.MaxOutputLen() + (options.IsChat() ? kTemplateTokens : 0);
  if (tokens <= max_context) return absl::OkStatus();
  return errors::OutOfRange(
      absl::StrCat(
          "--input_len + --output_len",
          options.IsChat() ? absl::StrCat(" + ", kTemplateTokens, " of the template") : ""),
      tokens, absl::StrCat("at most ", max_context, ", the model's context"));
}

// Sends the warm-up requests, which must succeed: what fails alone needs no load.
absl::Status WarmUp(const LoadOptions& load, std::vector<LoadRequest> requests,
                    const std::function<bool()>& stop) {
  const LoadResult result = RunLoad(
      load, std::move(requests), [](const LoadProgress&) {}, stop);
  for (const RequestRecord& record : result.records) {
    if (record.status.ok()) continue;
    return absl::Status(record.status.code(),
                        absl::StrCat("warm-up request: ", std::string(record.status.message())));
  }
  return absl::OkStatus();
}

absl::Status Verdict(const BenchOptions& options, const BenchSummary& summary) {
  if (summary.stopped) {
    return absl::CancelledError(absl::StrCat("interrupted after ", summary.completed, " of ",
                                             options.num_requests, " requests"));
  }
  if (summary.failed == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(
      summary.failed, " of ", options.num_requests,
      " requests failed: ", absl::StrJoin(summary.errors, ", ", absl::PairFormatter(" x "))));
}

}  // namespace

std::string FormatBenchProgress(const LoadProgress& progress) {
  const int64_t ended = progress.finished + progress.failed;
  const auto filled =
      static_cast<int>(progress.total > 0 ? kBarWidth * ended / progress.total : kBarWidth);
  const double seconds = absl::ToDoubleSeconds(progress.elapsed);
  return absl::StrFormat("[%s%s] %d/%d  %.1f s  %.0f tokens/s  %d in flight  %d failed",
                         std::string(filled, '#'), std::string(kBarWidth - filled, '-'), ended,
                         progress.total, seconds,
                         seconds > 0 ? static_cast<double>(progress.tokens) / seconds : 0,
                         progress.in_flight, progress.failed);
}

absl::Status RunBench(const BenchOptions& options, std::ostream& out, std::ostream& err,
                      bool err_is_terminal, const std::function<bool()>& stop) {
  RETURN_IF_ERROR(options.Validate());
  LoadOptions load;
  load.channels = MakeChannels(options);
  load.concurrency = options.Concurrency();
  load.timeout = absl::Seconds(options.router.timeout_seconds);
  const auto stub = v1::Inference::NewStub(load.channels.front());
  ASSIGN_OR_RETURN(const v1::GetModelResponse model, GetModel(*stub, options.router.endpoint));
  RETURN_IF_ERROR(CheckContext(options, model.max_context()));

  constexpr char kClearLine[] = "\r\x1b[K";
  if (err_is_terminal) err << "preparing " << options.num_requests << " requests" << std::flush;
  absl::StatusOr<std::vector<LoadRequest>> made = MakeBenchRequests(options, *stub, stop);
  if (err_is_terminal) err << kClearLine << std::flush;
  RETURN_IF_ERROR(made.status());
  std::vector<LoadRequest> requests = *std::move(made);
  const auto first = requests.begin() + options.warmup;
  std::vector<LoadRequest> measured(std::make_move_iterator(first),
                                    std::make_move_iterator(requests.end()));
  requests.erase(first, requests.end());
  RETURN_IF_ERROR(WarmUp(load, std::move(requests), stop));

  const LoadResult result = RunLoad(
      load, std::move(measured),
      [&](const LoadProgress& progress) {
        if (err_is_terminal) err << kClearLine << FormatBenchProgress(progress) << std::flush;
      },
      stop);
  if (err_is_terminal) err << kClearLine << std::flush;
  const BenchSummary summary = Summarize(options, result);
  out << (options.json ? ToLine(BenchJson(options, model.model().name(), summary)) + "\n"
                       : BenchText(options, model.model().name(), summary))
      << std::flush;
  return Verdict(options, summary);
}

}  // namespace conclave
