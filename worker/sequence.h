#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/sampling.h"
#include "proto/conclave/v1/worker.pb.h"
#include "worker/block_pool.h"
#include "worker/thinking_automaton.h"

namespace conclave {

// Where a request's events go. Called by the engine's threads, events by one at a time; must not
// block.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void OnEvent(v1::TokenEvent event) = 0;
  // Exactly once, after the last event; nothing is called afterwards.
  virtual void OnDone(const absl::Status& status) = 0;
  // False while the reader is too far behind: the sequence pauses and keeps its KV.
  virtual bool Writable() const = 0;
  // True once the reader has gone: the request is dropped before the next step.
  virtual bool Cancelled() const = 0;
};

// What a request may ask of this worker.
struct SequenceLimits {
  int64_t max_context = 0;  // prompt and output together
  int64_t num_ids = 0;      // of the tokenizer; larger ids are padding
  int64_t vocab_size = 0;   // rows of the embedding
};

// One request inside the engine. Touched by the engine's thread alone.
struct Sequence {
  std::string request_id;
  uint64_t arrival = 0;  // lower came first; decides who is preempted
  absl::Time submitted;
  absl::Time deadline = absl::InfiniteFuture();
  std::shared_ptr<TokenSink> sink;

  SamplingParams sampling;
  std::vector<std::pair<uint32_t, float>> logit_bias;
  std::vector<uint32_t> stop_ids;
  int64_t max_tokens = 0;
  bool prompt_logprobs_wanted = false;
  bool background = false;  // fills the prefix cache while nothing else runs; emits nothing

  std::vector<uint32_t> tokens;  // prompt, then everything generated or forced
  int64_t num_prompt = 0;
  int64_t num_emitted = 0;   // of tokens: prompt, and what the sink has heard of
  int64_t num_computed = 0;  // of tokens: those whose KV is in the cache
  std::vector<int32_t> block_table;
  CachedPrefix prefix;  // blocks of block_table that are in the prefix cache

  // The planner's.
  int64_t expected_cached = 0;  // of tokens, when it entered the queue
  int num_overtakes = 0;        // sequences admitted before it while it was the queue's first
  uint64_t last_turn = 0;       // of all that were given
  bool preempted = false;       // at any time

  ThinkingAutomaton thinking{{}, {}};
  ThinkingSnapshot emitted_thinking;        // as of the last emitted id
  TokenCounts counts;                       // kept only if a penalty is set
  std::vector<float> prompt_logprobs;       // of tokens[1 ..], as far as computed
  std::vector<v1::TokenLogprobs> logprobs;  // of tokens[num_emitted ..], as far as computed
  bool started = false;

  int64_t num_pending() const { return static_cast<int64_t>(tokens.size()) - num_computed; }
  // The first of tokens whose row of logits is looked at: what is before it may come out of the
  // prefix cache. At the latest the last token, which predicts the next one.
  int64_t first_needed_row() const {
    if (prompt_logprobs_wanted) return static_cast<int64_t>(prompt_logprobs.size());
    const auto last = static_cast<int64_t>(tokens.size()) - 1;
    if (!sampling.logprob) return last;
    return std::min(last, num_emitted + static_cast<int64_t>(logprobs.size()) - 1);
  }
  int64_t num_generated() const { return static_cast<int64_t>(tokens.size()) - num_prompt; }
  bool has_penalty() const {
    return sampling.presence_penalty != 0 || sampling.frequency_penalty != 0 ||
           sampling.repetition_penalty != 1;
  }
};

// Validates a request and builds its sequence, a resumed one where the other worker stopped.
// InvalidArgument naming the first field that cannot be served.
absl::StatusOr<std::unique_ptr<Sequence>> MakeSequence(const v1::TokenRequest& request,
                                                       const SequenceLimits& limits,
                                                       const TokenBytes& token_bytes);

v1::ThinkingState ToProto(const ThinkingSnapshot& snapshot);
ThinkingSnapshot FromProto(const v1::ThinkingState& state);

}  // namespace conclave
