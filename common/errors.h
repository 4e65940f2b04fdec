#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

// The errors that cross a process boundary, made in one place so that their words and codes agree
// everywhere. Callers branch on the code, never on the text. Each says what, value, allowed.
namespace conclave::errors {

// INVALID_ARGUMENT "temperature is -1, want 0..2".
template <typename Value>
absl::Status OutOfRange(absl::string_view what, const Value& value, absl::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrCat(what, " is ", value, ", want ", allowed));
}

// INVALID_ARGUMENT; keeps the words "maximum context length", on which clients stop retrying.
absl::Status PromptTooLong(int64_t prompt_tokens, int64_t max_tokens, int64_t max_context);

// NOT_FOUND "model is \"x\", this cluster serves \"y\"".
absl::Status UnknownModel(absl::string_view asked, absl::string_view served);

// RESOURCE_EXHAUSTED with how long to wait in the text; see RetryAfter in rpc/grpc_status.h.
absl::Status Overloaded(absl::string_view queue, int64_t limit);

// UNAVAILABLE: the process drains and takes no new work; try another.
absl::Status Draining(absl::string_view process);

// UNAVAILABLE: nobody serves what is needed; names it.
absl::Status NoWorker(int num_known);
absl::Status ExpertsMissing(int layer, absl::Span<const int> experts, absl::Duration waited);

// FAILED_PRECONDITION: another model's shard. Configuration, not to be retried.
absl::Status FingerprintMismatch(absl::string_view target, absl::string_view found,
                                 absl::string_view wanted);

// FAILED_PRECONDITION: a shard that keeps its weights in another dtype gives other tokens.
absl::Status WeightDtypeMismatch(absl::string_view target, absl::string_view found,
                                 absl::string_view wanted);

// FAILED_PRECONDITION: the sender's placement is stale; Describe again, then resend.
absl::Status StalePlacement(uint64_t epoch_assumed, uint64_t epoch_now);

// INTERNAL: a call to the device failed, whose state nobody knows from then on: the process that
// uses it has to end. Told from other INTERNALs by IsDeviceFailure as long as it stays inside the
// process; the wire does not carry the difference.
absl::Status DeviceFailure(absl::string_view what);
bool IsDeviceFailure(const absl::Status& status);

// UNAVAILABLE: what the process answers from then on; try another.
absl::Status LostDevice(absl::string_view process, const absl::Status& failure);

// DATA_LOSS: file, tensor (may be empty), what was found, what was wanted.
absl::Status BadCheckpoint(absl::string_view file, absl::string_view tensor,
                           absl::string_view found, absl::string_view wanted);

}  // namespace conclave::errors
