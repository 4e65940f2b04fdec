#include "worker/shared_memory_call.h"

#include <utility>

#include "common/status_macros.h"

namespace conclave {

absl::StatusOr<std::shared_ptr<LinkCall>> SharedMemoryCall::Start(
    const std::shared_ptr<grpc::Channel>& channel, const Doorbell& bell, BufferPool* pool,
    Events events) {
  ASSIGN_OR_RETURN(SharedMemoryOffering offering, SharedMemoryOffering::Make(bell));
  std::shared_ptr<SharedMemoryCall> call(
      new SharedMemoryCall(channel, std::move(offering), pool, std::move(events)));
  call->stub_->async()->OpenSharedMemory(call->context(), call.get());
  call->Begin(call, call->offering_.offer());
  return call;
}

SharedMemoryCall::SharedMemoryCall(const std::shared_ptr<grpc::Channel>& channel,
                                   SharedMemoryOffering offering, BufferPool* pool, Events events)
    : OfferCall(std::move(events)),
      stub_(v1::ExpertShard::NewStub(channel)),
      pool_(pool),
      offering_(std::move(offering)) {}

absl::Status SharedMemoryCall::OnAnswer(const v1::SharedMemoryAnswer& answer) {
  ASSIGN_OR_RETURN(std::shared_ptr<FrameLink> link, offering_.Open(answer, pool_));
  Opened(std::move(link));
  return absl::OkStatus();
}

}  // namespace conclave
