#include "router/worker_stream.h"

#include <utility>

#include "common/trace_context.h"
#include "rpc/grpc_status.h"

namespace conclave {

WorkerStream::WorkerStream(std::unique_ptr<WorkerLease> lease, v1::TokenRequest request,
                           std::shared_ptr<Listener> listener)
    : lease_(std::move(lease)), request_(std::move(request)), listener_(std::move(listener)) {}

std::shared_ptr<WorkerStream> WorkerStream::Start(std::unique_ptr<WorkerLease> lease,
                                                  v1::TokenRequest request, absl::Time deadline,
                                                  const std::string& traceparent,
                                                  std::shared_ptr<Listener> listener) {
  std::shared_ptr<WorkerStream> stream(
      new WorkerStream(std::move(lease), std::move(request), std::move(listener)));
  stream->self_ = stream;
  stream->context_.set_deadline(absl::ToChronoTime(deadline));
  if (!traceparent.empty()) stream->context_.AddMetadata(kTraceparent, traceparent);
  stream->lease_->stub().async()->Generate(&stream->context_, &stream->request_, stream.get());
  stream->AddHold();
  stream->StartCall();
  return stream;
}

void WorkerStream::Read() {
  absl::MutexLock lock(&mutex_);
  if (reading_ || !held_) return;
  reading_ = true;
  StartRead(&event_);
}

void WorkerStream::Drain() {
  absl::MutexLock lock(&mutex_);
  discarding_ = true;
  if (reading_ || !held_) return;
  reading_ = true;
  StartRead(&event_);
}

void WorkerStream::Cancel() {
  context_.TryCancel();
  absl::MutexLock lock(&mutex_);
  discarding_ = true;
  if (reading_ || !held_) return;  // the read ends and releases it
  held_ = false;
  RemoveHold();
}

void WorkerStream::OnReadInitialMetadataDone(bool ok) {
  // Not ok: the call ended with nothing but its status.
  if (ok) listener_->OnStreamAccepted(this);
}

void WorkerStream::OnReadDone(bool ok) {
  {
    absl::MutexLock lock(&mutex_);
    reading_ = false;
    if (!ok) {
      if (std::exchange(held_, false)) RemoveHold();
      return;
    }
    if (discarding_) {
      reading_ = true;
      StartRead(&event_);
      return;
    }
  }
  listener_->OnStreamEvent(this, std::move(event_));
}

void WorkerStream::OnDone(const grpc::Status& status) {
  // Whoever asked for more with no answer yet gets this one; the worker may free itself after it.
  const std::shared_ptr<WorkerStream> self = std::move(self_);
  const std::shared_ptr<Listener> listener = std::move(listener_);
  listener->OnStreamEnd(this, FromGrpcStatus(status));
}

}  // namespace conclave
