#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace conclave {

// The two kinds of status have the same codes. Messages are cut to 2 KiB on the way out: they
// travel in a header, and gRPC drops the whole status when headers pass 8 KiB.
grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

// Tells the client of a call that will end RESOURCE_EXHAUSTED when to come back, as trailing
// metadata "retry-after-ms". Call before the call is finished.
void SetRetryAfter(grpc::ServerContextBase& context, absl::Duration wait);

// What the server set, if it did: to be asked after the call has finished. At most an hour.
std::optional<absl::Duration> RetryAfter(const grpc::ClientContext& context);

}  // namespace conclave
