#include "expert_shard/link_dispatch_source.h"

#include <utility>

#include "common/errors.h"
#include "common/limits.h"

namespace conclave {

LinkDispatchSource::LinkDispatchSource(const ShardParts* parts, std::unique_ptr<FrameLink> link,
                                       absl::AnyInvocable<void(absl::Status)> on_end)
    : parts_(parts),
      worker_(parts->batcher->AddWorker()),
      abandoned_(std::make_shared<std::atomic<bool>>(false)),
      link_(std::move(link)),
      on_end_(std::move(on_end)) {}

void LinkDispatchSource::Poll() {
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

void LinkDispatchSource::End(absl::Status status) {
  abandoned_->store(true);
  link_ = nullptr;
  std::exchange(on_end_, nullptr)(std::move(status));
}

absl::Status LinkDispatchSource::Accept(const std::string& header,
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

void LinkDispatchSource::Answer(uint64_t sequence, size_t dispatch_bytes,
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

}  // namespace conclave
