#include "worker/step_output.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

// Rows of logits held at a time: 64 x 151,936 floats are 39 MB. More would only cost memory, the
// LM head is read once per slice and 64 rows are enough to be bound by arithmetic.
constexpr int64_t kLogitSliceRows = 64;

// Is the logprob of the known token `target` wanted, and not recorded yet (before a preemption)?
bool WantsLogprob(const Sequence& sequence, int64_t target) {
  if (sequence.prompt_logprobs_wanted && target < sequence.num_prompt) {
    return target == static_cast<int64_t>(sequence.prompt_logprobs.size()) + 1;
  }
  return sequence.sampling.logprob && target >= sequence.num_emitted &&
         target == sequence.num_emitted + static_cast<int64_t>(sequence.logprobs.size());
}

// As WantsLogprob, for rows later in the same chunk: the ones before will be recorded first.
bool WillWantLogprob(const Sequence& sequence, int64_t target) {
  if (sequence.prompt_logprobs_wanted && target < sequence.num_prompt) {
    return target > static_cast<int64_t>(sequence.prompt_logprobs.size());
  }
  return sequence.sampling.logprob &&
         target >= sequence.num_emitted + static_cast<int64_t>(sequence.logprobs.size());
}

SampleArgs ArgsFor(const Sequence& sequence, int64_t target, float* logits, int64_t vocab_size,
                   int64_t num_ids, absl::Span<const std::pair<uint32_t, float>> bias) {
  SampleArgs args;
  args.logits = logits;
  args.vocab_size = vocab_size;
  args.num_ids = num_ids;
  args.params = &sequence.sampling;
  args.counts = sequence.has_penalty() ? &sequence.counts : nullptr;
  args.logit_bias = bias;
  args.position = static_cast<uint64_t>(target);
  return args;
}

v1::TokenLogprobs ToProto(const SampleResult& result) {
  v1::TokenLogprobs proto;
  proto.set_logprob(result.logprob);
  for (const TokenLogprob& top : result.top_logprobs) {
    v1::TokenLogprobs::Entry* entry = proto.add_top();
    entry->set_id(top.id);
    entry->set_logprob(top.logprob);
  }
  return proto;
}

// Logprob and alternatives of a token that was forced, not drawn.
absl::Status RecordForced(Sequence& sequence, int64_t target, float* logits, int64_t vocab_size,
                          int64_t num_ids) {
  const float logprob = LogProb(logits, num_ids, sequence.tokens[target]);
  SampleArgs args = ArgsFor(sequence, target, logits, vocab_size, num_ids, {});
  ASSIGN_OR_RETURN(SampleResult result, Sample(args));
  result.logprob = logprob;
  sequence.logprobs.push_back(ToProto(result));
  return absl::OkStatus();
}

// The request's biases, and a ban on ids that would cut a character in two.
std::vector<std::pair<uint32_t, float>> BiasOf(const Sequence& sequence,
                                               absl::Span<const uint32_t> splitting_ids) {
  std::vector<std::pair<uint32_t, float>> bias = sequence.logit_bias;
  for (uint32_t id : sequence.thinking.ForbiddenIds(splitting_ids)) {
    bias.emplace_back(id, -std::numeric_limits<float>::infinity());
  }
  return bias;
}

// Lets the decoder's device draw all of these rows; false if it did not.
absl::StatusOr<bool> DrawOnDevice(absl::Span<const LogitRow> rows, int64_t first,
                                  StepDecoder& decoder, int64_t vocab_size, int64_t num_ids,
                                  absl::Span<const uint32_t> splitting_ids,
                                  absl::Span<SampleResult> drawn) {
  std::vector<std::vector<std::pair<uint32_t, float>>> biases(rows.size());
  std::vector<SampleArgs> args;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Sequence& sequence = *rows[i].sequence;
    if (!rows[i].sample || sequence.sampling.logprob) return false;
    biases[i] = BiasOf(sequence, splitting_ids);
    args.push_back(ArgsFor(sequence, rows[i].target, nullptr, vocab_size, num_ids, biases[i]));
  }
  return decoder.Draw(first, args, drawn);
}

absl::Status UseRow(const LogitRow& row, float* logits, int64_t vocab_size, int64_t num_ids,
                    absl::Span<const uint32_t> splitting_ids, SampleResult& drawn) {
  Sequence& sequence = *row.sequence;
  if (!row.sample) {
    if (!WantsLogprob(sequence, row.target)) return absl::OkStatus();
    if (row.target >= sequence.num_prompt) {
      return RecordForced(sequence, row.target, logits, vocab_size, num_ids);
    }
    sequence.prompt_logprobs.push_back(LogProb(logits, num_ids, sequence.tokens[row.target]));
    return absl::OkStatus();
  }
  const std::vector<std::pair<uint32_t, float>> bias = BiasOf(sequence, splitting_ids);
  ASSIGN_OR_RETURN(drawn, Sample(ArgsFor(sequence, row.target, logits, vocab_size, num_ids, bias)));
  if (sequence.sampling.logprob) sequence.logprobs.push_back(ToProto(drawn));
  return absl::OkStatus();
}

}  // namespace

void BuildBatch(const std::vector<PlannedSequence>& plan, StepBatch& batch,
                std::vector<LogitRow>& logit_rows) {
  batch = StepBatch();
  logit_rows.clear();
  for (const PlannedSequence& planned : plan) {
    Sequence& sequence = *planned.sequence;
    const auto first_row = static_cast<int64_t>(batch.ids.size());
    const auto num_tokens = static_cast<int64_t>(sequence.tokens.size());
    batch.sequences.push_back({.first_row = first_row,
                               .num_tokens = planned.num_tokens,
                               .first_position = sequence.num_computed,
                               .block_table = sequence.block_table.data()});
    for (int64_t i = 0; i < planned.num_tokens; ++i) {
      const int64_t position = sequence.num_computed + i;
      const int64_t block = sequence.block_table[position / limits::kKvBlockTokens];
      batch.ids.push_back(sequence.tokens[position]);
      batch.positions.push_back(static_cast<int32_t>(position));
      batch.slot_mapping.push_back(block * limits::kKvBlockTokens +
                                   position % limits::kKvBlockTokens);
      const int64_t target = position + 1;
      const bool sample = target == num_tokens && sequence.max_tokens > 0;
      if (sample || (target < num_tokens && WillWantLogprob(sequence, target))) {
        batch.logit_rows.push_back(first_row + i);
        logit_rows.push_back({&sequence, first_row + i, target, sample});
      }
    }
  }
}

absl::Status SampleRows(const std::vector<LogitRow>& logit_rows, StepDecoder& decoder,
                        int64_t vocab_size, int64_t num_ids,
                        absl::Span<const uint32_t> splitting_ids, const Device& device,
                        std::vector<float>& logits, std::vector<SampleResult>& drawn) {
  const auto num_rows = static_cast<int64_t>(logit_rows.size());
  drawn.assign(num_rows, SampleResult());
  logits.resize(std::min(num_rows, kLogitSliceRows) * vocab_size);
  for (int64_t first = 0; first < num_rows; first += kLogitSliceRows) {
    const int64_t count = std::min(kLogitSliceRows, num_rows - first);
    ASSIGN_OR_RETURN(const bool on_device,
                     DrawOnDevice(absl::MakeConstSpan(logit_rows).subspan(first, count), first,
                                  decoder, vocab_size, num_ids, splitting_ids,
                                  absl::MakeSpan(drawn).subspan(first, count)));
    if (on_device) continue;
    RETURN_IF_ERROR(decoder.Logits(first, count, logits.data()));
    // Rows of one sequence are recorded in order, so one thread takes all of them.
    std::vector<int64_t> starts;
    for (int64_t i = 0; i < count; ++i) {
      if (i == 0 || logit_rows[first + i].sequence != logit_rows[first + i - 1].sequence) {
        starts.push_back(i);
      }
    }
    starts.push_back(count);
    absl::Mutex mutex;
    absl::Status failure;
    const auto use_rows = [&](int64_t begin, int64_t end) {
      for (int64_t i = starts[begin]; i < starts[end]; ++i) {
        const absl::Status status = UseRow(logit_rows[first + i], logits.data() + i * vocab_size,
                                           vocab_size, num_ids, splitting_ids, drawn[first + i]);
        if (!status.ok()) {
          absl::MutexLock lock(&mutex);
          failure.Update(status);
          return;
        }
      }
    };
    device.pool->ParallelFor(static_cast<int64_t>(starts.size()) - 1, 1, use_rows);
    RETURN_IF_ERROR(failure);
  }
  return absl::OkStatus();
}

}  // namespace conclave
