#include "expert_shard/shared_memory_stream.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "rpc/grpc_status.h"

namespace conclave {

SharedDispatchSource::SharedDispatchSource(const ShardParts* parts, std::unique_ptr<FrameLink> link,
                                           absl::AnyInvocable<void(absl::Status)> on_end)
    : parts_(parts),
      worker_(parts->batcher->AddWorker()),
      abandoned_(std::make_shared<std::atomic<bool>>(false)),
      link_(std::move(link)),
      on_end_(std::move(on_end)) {}

void SharedDispatchSource::Poll() {
  if (link_ == nullptr) return;
  if (abandoned_->load()) {
    link_ = nullptr;
    on_end_ = nullptr;
    return;
  }
  const bool draining = draining_.load();  // before looking: what came earlier is still refused
  bool moved = true;
  while (moved) {
    // No more is taken than ForwardStream would read, and nothing while answers wait for room.
    const bool full =
        link_->num_waiting() > 0 || unanswered_bytes_ >= limits::kMaxQueuedBytesPerStream;
    const int room = full ? 0 : limits::kMaxQueuedFramesPerStream - unanswered_frames_;
    const absl::StatusOr<bool> polled = link_->Poll(
        room, [this](const std::string& header, absl::Span<const uint8_t> hidden_states) {
          return Accept(header, hidden_states);
        });
    if (!polled.ok()) return End(polled.status());
    if (!broken_.ok()) return End(broken_);
    moved = *polled;
  }
  if (draining && unanswered_frames_ == 0 && link_->num_waiting() == 0) End(absl::OkStatus());
}

void SharedDispatchSource::End(absl::Status status) {
  abandoned_->store(true);
  link_ = nullptr;
  std::exchange(on_end_, nullptr)(std::move(status));
}

absl::Status SharedDispatchSource::Accept(const std::string& header,
                                          absl::Span<const uint8_t> hidden_states) {
  QueuedDispatch queued;
  v1::ExpertDispatch& dispatch = queued.frame.header;
  if (!dispatch.ParseFromString(header) || !dispatch.hidden_states().empty()) {
    return absl::InvalidArgumentError("the header of a dispatch does not parse");
  }
  LogNewRequests(dispatch);
  const uint64_t sequence = dispatch.sequence();
  const size_t dispatch_bytes = DispatchBytes(dispatch, hidden_states.size(), parts_->rules);
  ++unanswered_frames_;
  unanswered_bytes_ += dispatch_bytes;
  absl::Status status = draining_.load() ? errors::Draining("expert shard")
                                         : parts_->rules.Check(dispatch, hidden_states.size());
  if (status.ok()) {
    // Copied, so that the worker may send its next while this one waits, and cannot change it.
    queued.frame.hidden_states = parts_->batcher->CopyTensor(hidden_states);
    if (dispatch.deadline_ms() > 0) {
      queued.deadline = absl::Now() + absl::Milliseconds(dispatch.deadline_ms());
    }
    queued.worker = worker_;
    queued.abandoned = abandoned_;
    queued.done = [self = shared_from_this(), sequence,
                   dispatch_bytes](const absl::StatusOr<DispatchResult>& result) {
      self->Answer(sequence, dispatch_bytes, result);
    };
    status = parts_->batcher->Submit(std::move(queued));
  }
  if (!status.ok()) Answer(sequence, dispatch_bytes, status);
  return absl::OkStatus();
}

void SharedDispatchSource::Answer(uint64_t sequence, size_t dispatch_bytes,
                                  const absl::StatusOr<DispatchResult>& result) {
  --unanswered_frames_;
  unanswered_bytes_ -= dispatch_bytes;
  if (link_ == nullptr || abandoned_->load()) return;
  if (!result.ok()) parts_->metrics->CountError(result.status().code());
  SplitAnswer(sequence, result, parts_->rules.row_bytes(), limits::kMaxExpertFrameBytes,
              [&](const v1::ExpertCombine& header, FrameLink::Pieces rows) {
                // Poll, which may be above us and still uses the link, ends it.
                if (broken_.ok()) broken_ = link_->Send(header, rows);
              });
}

std::shared_ptr<SharedMemoryStream> SharedMemoryStream::Start(const ShardParts* parts,
                                                              absl::AnyInvocable<void()> on_done) {
  std::shared_ptr<SharedMemoryStream> stream(new SharedMemoryStream(parts, std::move(on_done)));
  stream->self_ = stream;
  stream->StartRead(&stream->offer_);
  return stream;
}

SharedMemoryStream::SharedMemoryStream(const ShardParts* parts, absl::AnyInvocable<void()> on_done)
    : parts_(parts), on_done_(std::move(on_done)) {}

void SharedMemoryStream::Drain() {
  std::shared_ptr<SharedDispatchSource> source;
  {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
    source = source_;
  }
  if (source == nullptr) return End(errors::Draining("expert shard"));
  source->Drain();
  parts_->batcher->bell().Ring();
}

absl::Status SharedMemoryStream::Accept() {
  if (offer_.boot_id().empty() || offer_.boot_id() != BootId()) {
    return absl::FailedPreconditionError("the worker is on another host");
  }
  if (!parts_->batcher->bell().is_shared()) {
    return absl::FailedPreconditionError("this system gives no memory to share");
  }
  if (offer_.rings().bytes() != FrameLinkBytes()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the memory has ", offer_.rings().bytes(), " bytes, want ", FrameLinkBytes()));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Doorbell> bell, Doorbell::Open(offer_.doorbell()));
  ASSIGN_OR_RETURN(SharedMemory rings, SharedMemory::Open(offer_.rings(), FrameLinkBytes()));
  answer_.set_confirmation(rings.Confirm());
  *answer_.mutable_doorbell() = parts_->batcher->bell().region();
  auto link = std::make_unique<FrameLink>(FrameLink::Side::kShard, std::move(rings),
                                          std::move(bell), &parts_->batcher->pool());
  auto source = std::make_shared<SharedDispatchSource>(
      parts_, std::move(link), [weak = weak_from_this()](absl::Status status) {
        if (status.ok()) status = errors::Draining("expert shard");
        if (const auto stream = weak.lock()) stream->End(status);
      });
  {
    absl::MutexLock lock(&mutex_);
    if (ended_ || draining_) return errors::Draining("expert shard");
    source_ = source;
    writing_ = true;
  }
  // Before the worker hears of it, and so before its first frame.
  parts_->metrics->shared_memory_workers.Increment();
  parts_->batcher->AddSource(std::move(source));
  return absl::OkStatus();
}

void SharedMemoryStream::OnReadDone(bool ok) {
  if (!ok) return End(absl::CancelledError("the worker ended the shared memory"));
  if (answer_.confirmation() != 0) return End(absl::InvalidArgumentError("a second offer"));
  const absl::Status accepted = Accept();
  if (!accepted.ok()) {
    LOG_INFO("a worker's shared memory is not used: {}", accepted.ToString());
    return End(accepted);
  }
  StartWrite(&answer_);
}

void SharedMemoryStream::OnWriteDone(bool ok) {
  bool ended = false;
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    ended = ended_;
  }
  if (!ok) End(absl::CancelledError("the worker has gone"));
  if (ended) return FinishIfTime();
  if (ok) StartRead(&offer_);  // comes back at the call's end
}

void SharedMemoryStream::OnCancel() { End(absl::CancelledError("the worker has gone")); }

void SharedMemoryStream::End(const absl::Status& status) {
  std::shared_ptr<SharedDispatchSource> source;
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) return;
    ended_ = true;
    end_status_ = status;
    source = source_;
  }
  if (source != nullptr) source->Abandon();
  FinishIfTime();
}

void SharedMemoryStream::FinishIfTime() {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    if (!ended_ || writing_ || finished_) return;
    finished_ = true;
    status = end_status_;
  }
  Finish(ToGrpcStatus(status));
}

void SharedMemoryStream::OnDone() {
  std::shared_ptr<SharedDispatchSource> source;
  {
    absl::MutexLock lock(&mutex_);
    source = std::move(source_);
  }
  if (source != nullptr) {
    parts_->batcher->RemoveSource(source.get());
    parts_->batcher->RemoveWorker(source->worker());
    parts_->metrics->shared_memory_workers.Decrement();
  }
  on_done_();
  self_.reset();  // may delete this
}

}  // namespace conclave
