#include "client/generate_command.h"

#include <grpcpp/client_context.h>
#include <unistd.h>

#include <ostream>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/chat_printer.h"
#include "client/chat_result.h"
#include "client/input_files.h"
#include "common/status_macros.h"
#include "proto/conclave/v1/inference.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"

namespace conclave {
namespace {

absl::StatusOr<v1::GenerateRequest> BuildRequest(const GenerateCommandOptions& options) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  if (options.ids) {
    ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, ParseIds(options.prompt));
    request.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  } else {
    request.set_text(options.prompt);
  }
  *request.mutable_sampling() = ToSamplingOptions(options.sampling);
  if (options.sampling.max_tokens) request.set_max_tokens(*options.sampling.max_tokens);
  for (const std::string& stop : options.sampling.stop) request.add_stop(stop);
  request.set_prompt_logprobs(options.prompt_logprobs);
  request.set_ignore_eos(options.ignore_eos);
  return request;
}

// Prints a generation's events as they come, or collects them for one object.
class GenerationPrinter {
 public:
  GenerationPrinter(const GenerateCommandOptions& options, std::ostream& out)
      : options_(options), out_(out) {}

  void Add(const v1::GenerateEvent& event) {
    if (event.has_started()) seed_ = event.started().seed();
    if (event.has_delta()) AddDelta(event.delta());
    if (event.has_prompt_logprobs()) {
      const auto& values = event.prompt_logprobs().logprobs();
      logprobs_.assign(values.begin(), values.end());
      if (!options_.json) out_ << "prompt logprobs: " << absl::StrJoin(logprobs_, " ") << std::endl;
    }
    if (event.has_finished()) finished_ = event.finished();
  }

  void End() {
    if (!options_.json) {
      if (!text_.empty() || !ids_.empty()) out_ << std::endl;
      return;
    }
    nlohmann::ordered_json json;
    json["text"] = text_;
    json["ids"] = ids_;
    if (options_.prompt_logprobs) json["prompt_logprobs"] = logprobs_;
    json["finish_reason"] = FinishReasonName(finished_.reason());
    json["usage"] = UsageToJson(finished_.usage());
    json["failovers"] = finished_.failovers();
    json["seed"] = seed_;
    out_ << ToLine(json) << std::endl;
  }

 private:
  void AddDelta(const v1::TextDelta& delta) {
    const bool first = ids_.empty();
    text_ += delta.text();
    ids_.insert(ids_.end(), delta.ids().begin(), delta.ids().end());
    if (options_.json) return;
    if (options_.ids) {
      out_ << (first || delta.ids().empty() ? "" : " ") << absl::StrJoin(delta.ids(), " ");
    } else {
      out_ << (isatty(STDOUT_FILENO) == 1 ? SafeForTerminal(delta.text()) : delta.text());
    }
    out_ << std::flush;
  }

  const GenerateCommandOptions& options_;
  std::ostream& out_;
  std::string text_;
  std::vector<uint32_t> ids_;
  std::vector<float> logprobs_;
  v1::Finished finished_;
  uint64_t seed_ = 0;
};

}  // namespace

absl::Status RunGenerate(const GenerateCommandOptions& options, std::ostream& out) {
  ASSIGN_OR_RETURN(const v1::GenerateRequest request, BuildRequest(options));
  const auto stub = v1::Inference::NewStub(MakeChannel(options.router.endpoint));
  grpc::ClientContext context;
  context.set_deadline(
      absl::ToChronoTime(absl::Now() + absl::Seconds(options.router.timeout_seconds)));
  const auto reader = stub->Generate(&context, request);
  GenerationPrinter printer(options, out);
  v1::GenerateEvent event;
  bool finished = false;
  while (reader->Read(&event)) {
    printer.Add(event);
    finished = finished || event.has_finished();
  }
  RETURN_IF_ERROR(FromGrpcStatus(reader->Finish()));
  if (!finished) {
    return absl::InternalError("the router ended the stream without a \"finished\" event");
  }
  printer.End();
  return absl::OkStatus();
}

}  // namespace conclave
