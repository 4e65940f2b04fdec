#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "worker/decoder.h"
#include "worker/step_planner.h"

namespace conclave {

// The rows of a step whose logits are used, and for what.
struct LogitRow {
  Sequence* sequence = nullptr;
  int64_t row = 0;      // in the step's batch
  int64_t target = 0;   // index into the sequence's tokens that the row predicts
  bool sample = false;  // target is not there yet: draw it; else only its logprob is wanted
};

// The batch of a planned step, and the logit rows it needs, in the order of their rows.
void BuildBatch(const std::vector<PlannedSequence>& plan, StepBatch& batch,
                std::vector<LogitRow>& logit_rows);

// Computes logits in slices, records wanted logprobs in the sequences and draws the next token
// of each LogitRow with `sample`, on the decoder's device where it does that: drawn[i] belongs to
// logit_rows[i]. `splitting_ids`: see IdsThatSplitCharacters. Errors: Internal (logits are not
// numbers).
absl::Status SampleRows(const std::vector<LogitRow>& logit_rows, StepDecoder& decoder,
                        int64_t vocab_size, int64_t num_ids,
                        absl::Span<const uint32_t> splitting_ids, const Device& device,
                        std::vector<float>& logits, std::vector<SampleResult>& drawn);

}  // namespace conclave
