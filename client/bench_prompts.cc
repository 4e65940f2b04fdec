#include "client/bench_prompts.h"

#include <grpcpp/client_context.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/input_files.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "rpc/grpc_status.h"

namespace conclave {
namespace {

using Ids = std::vector<uint32_t>;

// Random text that is decoded and encoded again settles after two or three rounds; what has not
// after these is a token or two off.
constexpr int kMaxTextRounds = 6;

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + limits::kDescribeDeadline));
}

absl::StatusOr<Ids> Tokenize(v1::Inference::Stub& stub, const std::string& text, bool plain) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::TokenizeRequest request;
  request.set_text(text);
  request.set_plain(plain);
  v1::TokenizeResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(stub.Tokenize(&context, request, &response)));
  return Ids(response.ids().begin(), response.ids().end());
}

absl::StatusOr<std::string> Detokenize(v1::Inference::Stub& stub, const Ids& ids) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::DetokenizeRequest request;
  request.mutable_ids()->Add(ids.begin(), ids.end());
  v1::DetokenizeResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(stub.Detokenize(&context, request, &response)));
  return std::move(*response.mutable_text());
}

// The generator's own bits: the standard library's distributions differ between implementations.
class Random {
 public:
  explicit Random(uint64_t seed) : generator_(seed) {}

  uint64_t Below(uint64_t end) { return generator_() % end; }
  double Unit() { return static_cast<double>(generator_() >> 11) * 0x1.0p-53; }  // [0, 1)
  // Time to the next arrival of a Poisson process.
  absl::Duration Gap(double rate) { return absl::Seconds(-std::log1p(-Unit()) / rate); }
  int Within(int length, double ratio) {
    const auto low = static_cast<int>(std::ceil(length * (1 - ratio)));
    const auto high = static_cast<int>(std::floor(length * (1 + ratio)));
    return std::max(1, low) + static_cast<int>(Below(std::max(1, high - std::max(1, low) + 1)));
  }
  Ids Append(Ids ids, size_t size, uint32_t num_plain_ids) {
    while (ids.size() < size) ids.push_back(static_cast<uint32_t>(Below(num_plain_ids)));
    return ids;
  }

 private:
  std::mt19937_64 generator_;
};

class RequestMaker {
 public:
  RequestMaker(const BenchOptions& options, v1::Inference::Stub& stub, uint32_t num_plain_ids,
               std::vector<std::string> questions)
      : options_(options),
        stub_(stub),
        num_plain_ids_(num_plain_ids),
        questions_(std::move(questions)),
        random_(options.seed),
        prefix_(random_.Append({}, options.shared_prefix_len, num_plain_ids)) {}

  absl::StatusOr<LoadRequest> Make(int64_t number, bool thinks) {
    LoadRequest request;
    request.thinks = thinks;
    const int input_len = random_.Within(options_.input_len, options_.range_ratio);
    const int output_len = random_.Within(options_.output_len, options_.range_ratio);
    if (!options_.IsChat()) {
      v1::GenerateRequest generate;
      const Ids ids = random_.Append(prefix_, input_len, num_plain_ids_);
      generate.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
      SetCommon(number, output_len, &generate);
      request.request = std::move(generate);
      return request;
    }
    v1::ChatRequest chat;
    v1::ChatMessage* message = chat.add_messages();
    message->set_role("user");
    if (questions_.empty()) {
      ASSIGN_OR_RETURN(*message->mutable_content(), RandomText(input_len));
    } else {
      message->set_content(questions_[number % questions_.size()]);
    }
    if (options_.think_share) chat.mutable_thinking()->set_enable_thinking(thinks);
    if (thinks || (!options_.think_share && options_.thinking_budget)) {
      chat.mutable_thinking()->set_budget(options_.thinking_budget.value_or(output_len / 2));
    }
    SetCommon(number, output_len, &chat);
    request.request = std::move(chat);
    return request;
  }

  absl::Duration Gap() { return random_.Gap(*options_.rate); }

  // Which requests think: the share exactly, in random places.
  std::vector<bool> Thinkers() {
    std::vector<bool> thinks(options_.num_requests);
    const double share = options_.think_share.value_or(0);
    std::fill_n(thinks.begin(), std::llround(share * static_cast<double>(thinks.size())), true);
    for (size_t i = thinks.size(); i > 1; --i) {
      const size_t other = random_.Below(i);
      const bool moved = thinks[i - 1];
      thinks[i - 1] = thinks[other];
      thinks[other] = moved;
    }
    return thinks;
  }

 private:
  template <typename Request>
  void SetCommon(int64_t number, int output_len, Request* request) {
    request->set_model(options_.model);
    request->set_max_tokens(static_cast<uint32_t>(output_len));
    request->set_ignore_eos(!options_.respect_eos);
    if (options_.temperature) request->mutable_sampling()->set_temperature(*options_.temperature);
    request->mutable_sampling()->set_seed(options_.seed + static_cast<uint64_t>(number));
  }

  // Text of `size` tokens. Bytes that are no UTF-8 and neighbours that merge change the count when
  // decoded ids are encoded again, so it is cut or filled up until it stays.
  absl::StatusOr<std::string> RandomText(int size) {
    Ids ids = random_.Append(prefix_, size, num_plain_ids_);
    std::string text;
    for (int round = 0; round < kMaxTextRounds; ++round) {
      ASSIGN_OR_RETURN(text, Detokenize(stub_, ids));
      ASSIGN_OR_RETURN(ids, Tokenize(stub_, text, /*plain=*/true));
      if (static_cast<int>(ids.size()) == size) break;
      ids.resize(std::min<size_t>(ids.size(), size));
      ids = random_.Append(std::move(ids), size, num_plain_ids_);
    }
    return text;
  }

  const BenchOptions& options_;
  v1::Inference::Stub& stub_;
  const uint32_t num_plain_ids_;
  const std::vector<std::string> questions_;
  Random random_;
  const Ids prefix_;
};

absl::StatusOr<std::vector<std::string>> ReadQuestions(const std::string& path) {
  std::vector<std::string> questions;
  if (path.empty()) return questions;
  ASSIGN_OR_RETURN(const std::string text, ReadInput(path));
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const absl::string_view question = absl::StripAsciiWhitespace(line);
    if (!question.empty()) questions.emplace_back(question);
  }
  if (questions.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompts is \"", path, "\", want a file with a question a line"));
  }
  return questions;
}

}  // namespace

absl::StatusOr<uint32_t> NumPlainIds(v1::Inference::Stub& stub) {
  ASSIGN_OR_RETURN(const Ids ids, Tokenize(stub, "<|endoftext|>", /*plain=*/false));
  if (ids.size() == 1 && ids[0] > 0) return ids[0];
  return absl::FailedPreconditionError(absl::StrCat(
      "<|endoftext|> is ", ids.size(),
      " tokens, want 1: this is no tokenizer of Qwen3, and no random ids can be drawn"));
}

absl::StatusOr<std::vector<LoadRequest>> MakeBenchRequests(const BenchOptions& options,
                                                           v1::Inference::Stub& stub,
                                                           const std::function<bool()>& stop) {
  ASSIGN_OR_RETURN(std::vector<std::string> questions, ReadQuestions(options.prompts_file));
  uint32_t num_plain_ids = 0;
  if (questions.empty()) {
    ASSIGN_OR_RETURN(num_plain_ids, NumPlainIds(stub));
  }
  RequestMaker maker(options, stub, num_plain_ids, std::move(questions));
  std::vector<LoadRequest> requests;
  requests.reserve(options.warmup + options.num_requests);
  for (int i = 0; i < options.warmup; ++i) {
    ASSIGN_OR_RETURN(LoadRequest request,
                     maker.Make(options.num_requests + i, options.think_share.value_or(0) > 0));
    requests.push_back(std::move(request));
  }
  const std::vector<bool> thinks = maker.Thinkers();
  absl::Duration arrival;
  for (int64_t i = 0; i < options.num_requests; ++i) {
    if (stop()) return absl::CancelledError("interrupted before any request was sent");
    ASSIGN_OR_RETURN(LoadRequest request, maker.Make(i, thinks[i]));
    request.arrival = arrival;
    if (options.rate) arrival += maker.Gap();
    requests.push_back(std::move(request));
  }
  return requests;
}

}  // namespace conclave
