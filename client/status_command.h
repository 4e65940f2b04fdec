#pragma once

#include <iosfwd>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/chat_command.h"
#include "proto/conclave/v1/inference.grpc.pb.h"

namespace conclave {

struct StatusCommandOptions {
  RouterOptions router;
  double wait_seconds = 0;  // ask again until the cluster serves, at most this long
  bool json = false;
};

// "0-31,40" of rising ids; "-" for none.
std::string FormatExpertIds(const google::protobuf::RepeatedField<uint32_t>& expert_ids);

// The errors of the call.
absl::StatusOr<v1::ClusterStatus> GetCluster(v1::Inference::Stub& stub, absl::Time deadline);

// A line for the router, each worker and each of its shards.
std::string FormatCluster(const std::string& endpoint, const v1::ClusterStatus& cluster);

// `conclave status`: prints the processes of a cluster and their load to `out`. OK only if the
// cluster serves; otherwise Unavailable, or the error of the GetCluster call.
absl::Status RunStatus(const StatusCommandOptions& options, std::ostream& out);

}  // namespace conclave
