#include "expert_shard/forward_stream.h"

#include <algorithm>
#include <utility>

#include "common/errors.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/trace_context.h"
#include "rpc/expert_frame.h"
#include "rpc/grpc_status.h"

namespace conclave {

void SplitAnswer(uint64_t sequence, const absl::StatusOr<DispatchResult>& result, size_t row_bytes,
                 size_t max_frame_bytes,
                 absl::FunctionRef<void(const v1::ExpertCombine& header,
                                        absl::Span<const absl::Span<const uint8_t>> rows)>
                     emit) {
  v1::ExpertCombine header;
  header.set_sequence(sequence);
  if (!result.ok()) {
    const grpc::Status status = ToGrpcStatus(result.status());  // bounds the message
    header.set_status_code(static_cast<uint32_t>(status.error_code()));
    header.set_status_message(status.error_message());
    return emit(header, {});
  }
  header.set_compute_us(static_cast<uint32_t>(absl::ToInt64Microseconds(result->compute_time)));
  const int64_t max_pairs = std::max<int64_t>(1, static_cast<int64_t>(max_frame_bytes / row_bytes));
  std::vector<absl::Span<const uint8_t>> pieces;
  uint32_t first_pair = 0;
  int64_t num_pairs = 0;  // in `pieces`
  const auto flush = [&] {
    header.set_first_pair(first_pair);
    header.set_num_pairs(static_cast<uint32_t>(num_pairs));
    emit(header, pieces);
    pieces.clear();
    first_pair += static_cast<uint32_t>(num_pairs);
    num_pairs = 0;
  };
  for (const ExpertRows& run : result->rows) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(run.rows);
    for (int64_t done = 0; done < run.num_pairs;) {
      const int64_t take = std::min(run.num_pairs - done, max_pairs - num_pairs);
      pieces.emplace_back(bytes + done * row_bytes, take * row_bytes);
      done += take;
      num_pairs += take;
      if (num_pairs == max_pairs) flush();
    }
  }
  if (num_pairs > 0) flush();
}

std::vector<grpc::ByteBuffer> EncodeAnswer(uint64_t sequence,
                                           const absl::StatusOr<DispatchResult>& result,
                                           size_t row_bytes, size_t max_frame_bytes) {
  std::vector<grpc::ByteBuffer> frames;
  SplitAnswer(
      sequence, result, row_bytes, max_frame_bytes,
      [&](const v1::ExpertCombine& header, absl::Span<const absl::Span<const uint8_t>> rows) {
        std::vector<grpc::Slice> slices;
        slices.reserve(rows.size());
        for (const absl::Span<const uint8_t> piece : rows) {
          slices.push_back(BorrowSlice(result->owner, piece.data(), piece.size()));
        }
        frames.push_back(EncodeFrame(header, slices));
      });
  return frames;
}

size_t DispatchBytes(const v1::ExpertDispatch& header, size_t tensor_bytes,
                     const DispatchRules& rules) {
  return tensor_bytes +
         static_cast<size_t>(header.pair_rows_size()) * (rules.row_bytes() + 2 * sizeof(uint32_t));
}

void LogNewRequests(const v1::ExpertDispatch& dispatch) {
  for (const v1::RequestTag& request : dispatch.new_requests()) {
    LogEvent("request announced",
             {{"request_id", request.request_id().substr(0, limits::kMaxRequestIdBytes)},
              {"trace_id", TraceId(ValidTraceparent(request.traceparent()))}});
  }
}

std::shared_ptr<ForwardStream> ForwardStream::Start(const ShardParts* parts,
                                                    absl::AnyInvocable<void()> on_done) {
  std::shared_ptr<ForwardStream> stream(new ForwardStream(parts, std::move(on_done)));
  stream->self_ = stream;
  parts->metrics->streams.Increment();
  stream->Continue();
  return stream;
}

ForwardStream::ForwardStream(const ShardParts* parts, absl::AnyInvocable<void()> on_done)
    : parts_(parts),
      on_done_(std::move(on_done)),
      worker_(parts->batcher->AddWorker()),
      abandoned_(std::make_shared<std::atomic<bool>>(false)) {}

void ForwardStream::Drain() {
  {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
  }
  FinishIfTime();
}

void ForwardStream::OnReadDone(bool ok) {
  absl::StatusOr<DispatchFrame> frame = absl::CancelledError();
  size_t dispatch_bytes = 0;
  if (ok) {
    frame = DecodeDispatch(incoming_);
    incoming_.Clear();
    if (frame.ok()) {
      dispatch_bytes = DispatchBytes(frame->header, frame->hidden_states.size(), parts_->rules);
    } else {
      parts_->metrics->CountError(frame.status().code());
    }
  }
  {
    absl::MutexLock lock(&mutex_);
    reading_ = false;
    if (frame.ok()) {
      ++unanswered_frames_;
      unanswered_bytes_ += dispatch_bytes;
    } else {
      read_ended_ = true;
      // Bytes that are no dispatch have no sequence to answer to: they end the stream, after the
      // answers to what came before them.
      if (ok) final_status_ = frame.status();
    }
  }
  if (frame.ok()) Accept(*std::move(frame), dispatch_bytes);
  Continue();
}

void ForwardStream::Accept(DispatchFrame frame, size_t dispatch_bytes) {
  LogNewRequests(frame.header);
  const uint64_t sequence = frame.header.sequence();
  absl::Status status = parts_->rules.Check(frame.header, frame.hidden_states.size());
  {
    absl::MutexLock lock(&mutex_);
    if (draining_) status = errors::Draining("expert shard");
  }
  if (status.ok()) {
    QueuedDispatch queued;
    if (frame.header.deadline_ms() > 0) {
      queued.deadline = absl::Now() + absl::Milliseconds(frame.header.deadline_ms());
    }
    queued.frame = std::move(frame);
    queued.worker = worker_;
    queued.abandoned = abandoned_;
    queued.done = [self = shared_from_this(), sequence,
                   dispatch_bytes](absl::StatusOr<DispatchResult> result) {
      self->Answer(sequence, dispatch_bytes, result);
    };
    status = parts_->batcher->Submit(std::move(queued));
  }
  if (!status.ok()) Answer(sequence, dispatch_bytes, status);
}

void ForwardStream::Answer(uint64_t sequence, size_t dispatch_bytes,
                           const absl::StatusOr<DispatchResult>& result) {
  if (!result.ok() && !abandoned_->load()) parts_->metrics->CountError(result.status().code());
  std::vector<grpc::ByteBuffer> frames =
      EncodeAnswer(sequence, result, parts_->rules.row_bytes(), limits::kMaxExpertFrameBytes);
  bool start_write = false;
  {
    absl::MutexLock lock(&mutex_);
    for (size_t i = 0; i < frames.size(); ++i) {
      const bool last = i + 1 == frames.size();
      outgoing_.push_back({std::move(frames[i]), last, dispatch_bytes});
    }
    start_write = !writing_ && !broken_ && !finished_;
    if (start_write) writing_ = true;
  }
  if (start_write) StartWriteOfFront();
}

void ForwardStream::OnWriteDone(bool ok) {
  bool more = false;
  {
    absl::MutexLock lock(&mutex_);
    if (!ok) broken_ = true;
    if (outgoing_.front().ends_dispatch) {
      --unanswered_frames_;
      unanswered_bytes_ -= outgoing_.front().dispatch_bytes;
    }
    outgoing_.pop_front();
    more = !broken_ && !outgoing_.empty();
    writing_ = more;
  }
  if (!ok) abandoned_->store(true);
  if (more) StartWriteOfFront();
  Continue();
}

void ForwardStream::StartWriteOfFront() {
  const grpc::ByteBuffer* frame = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    frame = &outgoing_.front().frame;  // stays in place while others are pushed behind it
  }
  StartWrite(frame);
}

void ForwardStream::OnCancel() {
  abandoned_->store(true);
  {
    absl::MutexLock lock(&mutex_);
    broken_ = true;
  }
  Continue();
}

void ForwardStream::OnDone() {
  parts_->batcher->RemoveWorker(worker_);
  parts_->metrics->streams.Decrement();
  on_done_();
  self_.reset();  // may delete this
}

bool ForwardStream::MayRead() const {
  return !reading_ && !read_ended_ && !broken_ && !finished_ &&
         unanswered_frames_ < limits::kMaxQueuedFramesPerStream &&
         unanswered_bytes_ < limits::kMaxQueuedBytesPerStream;
}

bool ForwardStream::MayFinish() const {
  if (finished_ || writing_) return false;
  return broken_ || ((read_ended_ || draining_) && unanswered_frames_ == 0);
}

void ForwardStream::Continue() {
  bool read = false;
  {
    absl::MutexLock lock(&mutex_);
    if (MayRead() && !MayFinish()) read = reading_ = true;
  }
  if (read) StartRead(&incoming_);
  FinishIfTime();
}

void ForwardStream::FinishIfTime() {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    if (!MayFinish()) return;
    finished_ = true;
    status = broken_ ? absl::CancelledError("the stream broke") : final_status_;
    if (status.ok() && !read_ended_) status = errors::Draining("expert shard");
  }
  Finish(ToGrpcStatus(status));
}

}  // namespace conclave
