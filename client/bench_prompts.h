#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "client/bench_options.h"
#include "client/load_generator.h"
#include "proto/conclave/v1/inference.grpc.pb.h"

namespace conclave {

// Ids below this are ordinary text: in a tokenizer of Qwen3's kind the added tokens, of which
// <|endoftext|> is the first, follow them. FailedPrecondition if the model has no such token;
// otherwise the errors of the Tokenize call.
absl::StatusOr<uint32_t> NumPlainIds(v1::Inference::Stub& stub);

// The requests of a benchmark, warm-up first: equal options and equal models give equal requests.
// Chats of random text take some Tokenize and Detokenize calls each, so that their lengths are
// those asked for (within a token or two, where text does not split as it was joined).
// Errors: of those calls, and of reading prompts_file; Cancelled once `stop` is true.
absl::StatusOr<std::vector<LoadRequest>> MakeBenchRequests(const BenchOptions& options,
                                                           v1::Inference::Stub& stub,
                                                           const std::function<bool()>& stop);

}  // namespace conclave
