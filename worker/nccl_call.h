#pragma once

#include <grpcpp/channel.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/conclave/v1/expert_shard.grpc.pb.h"
#include "rpc/doorbell.h"
#include "rpc/nccl_link.h"
#include "worker/link_call.h"

namespace conclave {

// One OpenNccl call to one shard: offers communicators, and holds the call open while frames travel
// by them.
class NcclCall final : public OfferCall<v1::NcclOffer, v1::NcclAnswer> {
 public:
  // `bell` wakes the thread that will use the link; it and `transport` are borrowed and outlive it.
  // Errors: those of NcclOffering::Make.
  static absl::StatusOr<std::shared_ptr<LinkCall>> Start(
      const std::shared_ptr<grpc::Channel>& channel, NcclTransport* transport,
      const NcclPeers& peers, bool fp8_dispatches, Doorbell* bell, Events events);

 private:
  NcclCall(const std::shared_ptr<grpc::Channel>& channel, NcclOffering offering, Doorbell* bell,
           Events events);

  absl::Status OnAnswer(const v1::NcclAnswer& answer) override;
  void OnEnd() override;
  void OnLinkReady(const absl::Status& status);

  const std::unique_ptr<v1::ExpertShard::Stub> stub_;
  Doorbell* const bell_;
  NcclOffering offering_;

  absl::Mutex link_mutex_;
  std::shared_ptr<FrameLink> joining_ ABSL_GUARDED_BY(link_mutex_);
};

}  // namespace conclave
