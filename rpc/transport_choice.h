#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/nccl_api.h"
#include "rpc/nccl_transport.h"

namespace conclave {

// By which ways frames may go between a worker and a shard, besides gRPC, which always may.
struct TransportChoice {
  enum class Nccl { kOff, kAuto, kRequired };
  bool shared_memory = true;
  Nccl nccl = Nccl::kAuto;
};

// Reads --expert_transport (auto, nccl, shared_memory, grpc) and --shared_memory (auto, off).
// InvalidArgument: another value; or NCCL, whose headers go through shared memory, or shared memory
// itself, without shared memory.
absl::StatusOr<TransportChoice> ChooseTransports(absl::string_view expert_transport,
                                                 absl::string_view shared_memory);

// Opens NCCL by `open` (empty: this build has none) if it is wanted; null if it is not, or if it
// cannot be had and need not be. Errors: those of `open`, FailedPrecondition without one.
absl::StatusOr<std::unique_ptr<NcclTransport>> OpenNcclTransport(
    TransportChoice::Nccl wanted,
    const std::function<absl::StatusOr<std::unique_ptr<NcclApi>>()>& open);

}  // namespace conclave
