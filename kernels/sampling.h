#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace conclave {

struct SamplingParams {
  float temperature = 1;         // 0: greedy (argmax, ties to the lower id); at most 2
  int top_k = 0;                 // 0: all
  float top_p = 1;               // smallest set of ids whose probability reaches it
  float min_p = 0;               // ids below min_p * the largest probability are dropped
  float presence_penalty = 0;    // subtracted once from ids generated before
  float frequency_penalty = 0;   // subtracted per earlier generation
  float repetition_penalty = 1;  // divides positive, multiplies negative logits of ids seen
  uint64_t seed = 0;
  int num_top_logprobs = 0;  // alternatives to report, by falling logprob
  bool logprob = false;      // report the chosen id's logprob
  // InvalidArgument naming the first field out of range.
  absl::Status Validate() const;
};

// What the penalties look at. Counts are of this request alone.
struct TokenCounts {
  absl::flat_hash_map<uint32_t, int> prompt;  // used by the repetition penalty only
  absl::flat_hash_map<uint32_t, int> output;
};

struct SampleArgs {
  float* logits = nullptr;  // [vocab_size]; in, and scratch: its content is undefined afterwards
  int64_t vocab_size = 0;   // rows of the LM head
  int64_t num_ids = 0;      // ids from here on are padding and are never sampled
  const SamplingParams* params = nullptr;
  const TokenCounts* counts = nullptr;                           // null when no penalty is set
  absl::Span<const std::pair<uint32_t, float>> logit_bias = {};  // -inf forbids an id
  uint64_t position = 0;  // absolute position of the token to draw: the generator's counter
};

struct TokenLogprob {
  uint32_t id = 0;
  float logprob = 0;
};

struct SampleResult {
  uint32_t id = 0;
  // Of the model's own distribution, before temperature and penalties; 0 unless asked for.
  float logprob = 0;
  std::vector<TokenLogprob> top_logprobs;
};

// Order: repetition, frequency and presence penalties, bias, mask, temperature, top_k, top_p,
// min_p, draw. Draws by a counter-based generator keyed by (seed, position): a replay of the
// request elsewhere gives the same id, on any x86-64 CPU. Runs on the calling thread.
// Errors: InvalidArgument (null pointer, a parameter or a bias out of range, every id forbidden),
// Internal (a logit is not finite: names it).
absl::StatusOr<SampleResult> Sample(const SampleArgs& args);

// log softmax of one row at `id`, over the first num_ids ids, in double sums; and the argmax,
// ties to the lower id. logits: [num_ids] or longer, all finite.
float LogProb(const float* logits, int64_t num_ids, uint32_t id);
uint32_t ArgMax(const float* logits, int64_t num_ids);

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A uniform double in [0, 1): the first 53 bits of Philox4x32 of counter (position) and key (seed),
// low words first.
double UniformAt(uint64_t seed, uint64_t position);

}  // namespace conclave
