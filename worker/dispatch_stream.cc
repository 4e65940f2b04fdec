#include "worker/dispatch_stream.h"

#include <grpcpp/generic/generic_stub.h>

#include <utility>

#include "rpc/grpc_status.h"

namespace conclave {
namespace {

constexpr char kForwardMethod[] = "/conclave.v1.ExpertShard/Forward";

}  // namespace

std::shared_ptr<DispatchStream> DispatchStream::Start(std::shared_ptr<grpc::Channel> channel,
                                                      Events events) {
  std::shared_ptr<DispatchStream> stream(new DispatchStream(std::move(channel), std::move(events)));
  stream->self_ = stream;
  grpc::GenericStub stub(stream->channel_);
  stub.PrepareBidiStreamingCall(&stream->context_, kForwardMethod, {}, stream.get());
  stream->AddHold();
  stream->StartRead(&stream->incoming_);
  stream->StartCall();
  return stream;
}

DispatchStream::DispatchStream(std::shared_ptr<grpc::Channel> channel, Events events)
    : channel_(std::move(channel)), events_(std::move(events)) {}

bool DispatchStream::Send(grpc::ByteBuffer frame) {
  grpc::ByteBuffer* front = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) return false;
    outgoing_.push_back(std::move(frame));
    if (writing_) return true;
    writing_ = true;
    front = &outgoing_.front();  // stays in place while others are pushed behind it
  }
  StartWrite(front);
  return true;
}

void DispatchStream::Cancel(absl::Status reason) {
  {
    absl::MutexLock lock(&mutex_);
    if (reason_.ok()) reason_ = std::move(reason);
    ended_ = true;
  }
  context_.TryCancel();
}

void DispatchStream::OnReadDone(bool ok) {
  if (!ok) return ReadsEnded();
  absl::StatusOr<CombineFrame> frame = DecodeCombine(incoming_);
  incoming_.Clear();
  if (!frame.ok()) {
    Cancel(frame.status());
  } else if (!events_.on_combine(*std::move(frame))) {
    Cancel(absl::InternalError("the shard sends more answers than it was asked for"));
  }
  StartRead(&incoming_);  // after Cancel it comes back with !ok
}

void DispatchStream::ReadsEnded() {
  bool remove_hold = false;
  {
    absl::MutexLock lock(&mutex_);
    ended_ = true;
    reads_ended_ = true;
    remove_hold = !writing_;
  }
  if (remove_hold) RemoveHold();
}

void DispatchStream::OnWriteDone(bool ok) {
  grpc::ByteBuffer* front = nullptr;
  bool remove_hold = false;
  {
    absl::MutexLock lock(&mutex_);
    outgoing_.pop_front();
    if (ok && !ended_ && !outgoing_.empty()) {
      front = &outgoing_.front();
    } else {
      writing_ = false;
      remove_hold = reads_ended_;  // Send starts no write after that: this is the last
    }
    if (!ok) ended_ = true;
  }
  if (front != nullptr) return StartWrite(front);
  if (!ok) context_.TryCancel();  // the read then ends too
  if (remove_hold) RemoveHold();
}

void DispatchStream::OnDone(const grpc::Status& status) {
  absl::Status reason = FromGrpcStatus(status);
  {
    absl::MutexLock lock(&mutex_);
    if (!reason_.ok()) reason = reason_;
  }
  if (reason.ok()) reason = absl::UnavailableError("the shard ended the stream");
  events_.on_end(std::move(reason));
  self_.reset();  // may delete this
}

}  // namespace conclave
