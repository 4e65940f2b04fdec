#pragma once

#include <grpcpp/channel.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/conclave/v1/expert_shard.grpc.pb.h"
#include "rpc/doorbell.h"
#include "rpc/shared_memory_link.h"
#include "worker/link_call.h"

namespace conclave {

// One OpenSharedMemory call to one shard: offers memory, and holds the call open while frames
// travel through it.
class SharedMemoryCall final : public OfferCall<v1::SharedMemoryOffer, v1::SharedMemoryAnswer> {
 public:
  // `bell`, which is shared, wakes the thread that will use the link; `pool` serves the link. Both
  // are borrowed and outlive it. An error is one of the system's: it has no memory to share.
  static absl::StatusOr<std::shared_ptr<LinkCall>> Start(
      const std::shared_ptr<grpc::Channel>& channel, const Doorbell& bell, BufferPool* pool,
      Events events);

 private:
  SharedMemoryCall(const std::shared_ptr<grpc::Channel>& channel, SharedMemoryOffering offering,
                   BufferPool* pool, Events events);

  absl::Status OnAnswer(const v1::SharedMemoryAnswer& answer) override;

  const std::unique_ptr<v1::ExpertShard::Stub> stub_;
  BufferPool* const pool_;
  SharedMemoryOffering offering_;
};

}  // namespace conclave
