#include "rpc/grpc_status.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace conclave {
namespace {

constexpr size_t kMaxMessageBytes = 2048;
constexpr char kRetryAfterKey[] = "retry-after-ms";
constexpr int64_t kMaxRetryAfterMs = 3'600'000;

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message().substr(0, kMaxMessageBytes)));
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const int code = static_cast<int>(status.error_code());
  const bool known = code > 0 && code <= static_cast<int>(grpc::StatusCode::UNAUTHENTICATED);
  return absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
                      status.error_message());
}

void SetRetryAfter(grpc::ServerContextBase& context, absl::Duration wait) {
  context.AddTrailingMetadata(kRetryAfterKey, absl::StrCat(absl::ToInt64Milliseconds(wait)));
}

std::optional<absl::Duration> RetryAfter(const grpc::ClientContext& context) {
  const auto& metadata = context.GetServerTrailingMetadata();
  const auto found = metadata.find(kRetryAfterKey);
  if (found == metadata.end()) return std::nullopt;
  int64_t milliseconds = 0;
  const absl::string_view text(found->second.data(), found->second.size());
  if (!absl::SimpleAtoi(text, &milliseconds) || milliseconds < 0) return std::nullopt;
  return absl::Milliseconds(std::min(milliseconds, kMaxRetryAfterMs));
}

}  // namespace conclave
