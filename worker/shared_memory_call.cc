#include "worker/shared_memory_call.h"

#include <utility>

#include "common/status_macros.h"
#include "rpc/grpc_status.h"

namespace conclave {

absl::StatusOr<std::shared_ptr<SharedMemoryCall>> SharedMemoryCall::Start(
    const std::shared_ptr<grpc::Channel>& channel, const Doorbell& bell, BufferPool* pool,
    Events events) {
  ASSIGN_OR_RETURN(SharedMemory rings, SharedMemory::Create(FrameLinkBytes()));
  std::shared_ptr<SharedMemoryCall> call(
      new SharedMemoryCall(channel, std::move(rings), pool, std::move(events)));
  call->self_ = call;
  call->offer_.set_boot_id(BootId());
  *call->offer_.mutable_rings() = call->rings_.region();
  *call->offer_.mutable_doorbell() = bell.region();
  call->stub_->async()->OpenSharedMemory(&call->context_, call.get());
  call->StartWrite(&call->offer_);
  call->StartRead(&call->answer_);
  call->StartCall();
  return call;
}

SharedMemoryCall::SharedMemoryCall(const std::shared_ptr<grpc::Channel>& channel,
                                   SharedMemory rings, BufferPool* pool, Events events)
    : stub_(v1::ExpertShard::NewStub(channel)),
      pool_(pool),
      events_(std::move(events)),
      rings_(std::move(rings)) {}

void SharedMemoryCall::Cancel(absl::Status reason) {
  {
    absl::MutexLock lock(&mutex_);
    if (reason_.ok()) reason_ = std::move(reason);
  }
  context_.TryCancel();
}

absl::StatusOr<std::shared_ptr<FrameLink>> SharedMemoryCall::MakeLink() {
  if (std::exchange(answered_, true)) {
    return absl::InternalError("the shard answered an offer of shared memory twice");
  }
  if (!rings_.IsConfirmed(answer_.confirmation())) {
    return absl::FailedPreconditionError("the shard has other memory than the one it was offered");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Doorbell> bell, Doorbell::Open(answer_.doorbell()));
  rings_.CloseFile();
  return std::make_shared<FrameLink>(FrameLink::Side::kWorker, std::move(rings_), std::move(bell),
                                     pool_);
}

void SharedMemoryCall::OnReadDone(bool ok) {
  if (!ok) return;
  absl::StatusOr<std::shared_ptr<FrameLink>> link = MakeLink();
  if (link.ok()) {
    events_.on_open(*std::move(link));
  } else {
    Cancel(link.status());
  }
  StartRead(&answer_);  // comes back with !ok at the call's end
}

void SharedMemoryCall::OnDone(const grpc::Status& status) {
  absl::Status reason = FromGrpcStatus(status);
  {
    absl::MutexLock lock(&mutex_);
    if (!reason_.ok()) reason = reason_;
  }
  if (reason.ok()) reason = absl::UnavailableError("the shard ended the shared memory");
  events_.on_end(std::move(reason));
  self_.reset();  // may delete this
}

}  // namespace conclave
