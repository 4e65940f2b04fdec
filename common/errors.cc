#include "common/errors.h"

#include "common/id_list.h"

namespace conclave::errors {
namespace {

constexpr char kDeviceFailure[] = "conclave/device_failure";

}  // namespace

absl::Status PromptTooLong(int64_t prompt_tokens, int64_t max_tokens, int64_t max_context) {
  return absl::InvalidArgumentError(
      absl::StrCat("prompt has ", prompt_tokens, " tokens and asks for ", max_tokens,
                   " more, want at most ", max_context, " (the maximum context length)"));
}

absl::Status UnknownModel(absl::string_view asked, absl::string_view served) {
  return absl::NotFoundError(
      absl::StrCat("model is \"", asked, "\", this cluster serves \"", served, "\""));
}

absl::Status Overloaded(absl::string_view queue, int64_t limit) {
  return absl::ResourceExhaustedError(
      absl::StrCat(queue, " is full with ", limit, " requests, retry later"));
}

absl::Status Draining(absl::string_view process) {
  return absl::UnavailableError(absl::StrCat(process, " is draining and takes no new requests"));
}

absl::Status NoWorker(int num_known) {
  return absl::UnavailableError(
      absl::StrCat("no worker serves: 0 of ", num_known, " known workers are ready"));
}

absl::Status ExpertsMissing(int layer, absl::Span<const int> experts, absl::Duration waited) {
  return absl::UnavailableError(
      absl::StrCat("no shard serves expert", experts.size() > 1 ? "s " : " ", FormatIdList(experts),
                   " of layer ", layer, ", waited ", absl::FormatDuration(waited)));
}

absl::Status FingerprintMismatch(absl::string_view target, absl::string_view found,
                                 absl::string_view wanted) {
  return absl::FailedPreconditionError(absl::StrCat("model fingerprint of shard ", target, " is ",
                                                    found, ", want ", wanted,
                                                    ": it loaded another model"));
}

absl::Status WeightDtypeMismatch(absl::string_view target, absl::string_view found,
                                 absl::string_view wanted) {
  return absl::FailedPreconditionError(
      absl::StrCat("weight_dtype of shard ", target, " is ", found, ", want ", wanted,
                   " as this worker's: their tokens would differ"));
}

absl::Status StalePlacement(uint64_t epoch_assumed, uint64_t epoch_now) {
  return absl::FailedPreconditionError(
      absl::StrCat("placement_epoch is ", epoch_assumed, ", want ", epoch_now));
}

absl::Status DeviceFailure(absl::string_view what) {
  absl::Status status = absl::InternalError(what);
  status.SetPayload(kDeviceFailure, absl::Cord());
  return status;
}

bool IsDeviceFailure(const absl::Status& status) {
  return status.GetPayload(kDeviceFailure).has_value();
}

absl::Status LostDevice(absl::string_view process, const absl::Status& failure) {
  return absl::UnavailableError(
      absl::StrCat(process, " has lost its device and ends: ", failure.message()));
}

absl::Status BadCheckpoint(absl::string_view file, absl::string_view tensor,
                           absl::string_view found, absl::string_view wanted) {
  const std::string where =
      tensor.empty() ? std::string(file) : absl::StrCat(file, ": tensor ", tensor);
  return absl::DataLossError(absl::StrCat(where, ": found ", found, ", want ", wanted));
}

}  // namespace conclave::errors
