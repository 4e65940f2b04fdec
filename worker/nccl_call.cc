#include "worker/nccl_call.h"

#include <utility>

#include "common/status_macros.h"

namespace conclave {

absl::StatusOr<std::shared_ptr<LinkCall>> NcclCall::Start(
    const std::shared_ptr<grpc::Channel>& channel, NcclTransport* transport, const NcclPeers& peers,
    bool fp8_dispatches, Doorbell* bell, Events events) {
  ASSIGN_OR_RETURN(NcclOffering offering, NcclOffering::Make(transport, peers, fp8_dispatches));
  std::shared_ptr<NcclCall> call(
      new NcclCall(channel, std::move(offering), bell, std::move(events)));
  call->stub_->async()->OpenNccl(call->context(), call.get());
  call->Begin(call, call->offering_.offer());
  return call;
}

NcclCall::NcclCall(const std::shared_ptr<grpc::Channel>& channel, NcclOffering offering,
                   Doorbell* bell, Events events)
    : OfferCall(std::move(events)),
      stub_(v1::ExpertShard::NewStub(channel)),
      bell_(bell),
      offering_(std::move(offering)) {}

absl::Status NcclCall::OnAnswer(const v1::NcclAnswer& answer) {
  // Under the lock, so that the link is there when it says that it is ready.
  absl::MutexLock lock(&link_mutex_);
  ASSIGN_OR_RETURN(joining_,
                   offering_.Open(answer, bell_,
                                  [self = std::static_pointer_cast<NcclCall>(shared_from_this())](
                                      const absl::Status& status) { self->OnLinkReady(status); }));
  return absl::OkStatus();
}

void NcclCall::OnEnd() {
  std::shared_ptr<FrameLink> dropped;  // without the lock
  absl::MutexLock lock(&link_mutex_);
  dropped = std::move(joining_);
}

void NcclCall::OnLinkReady(const absl::Status& status) {
  std::shared_ptr<FrameLink> link;
  {
    absl::MutexLock lock(&link_mutex_);
    link = std::move(joining_);
  }
  if (!status.ok()) return Cancel(status);
  if (link != nullptr) Opened(std::move(link));
}

}  // namespace conclave
