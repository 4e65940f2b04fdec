#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "expert_shard/dispatch_rules.h"
#include "expert_shard/shard_metrics.h"
#include "expert_shard/token_batcher.h"

namespace conclave {

// What the streams of a shard use, once its experts are loaded.
struct ShardParts {
  DispatchRules rules;
  TokenBatcher* batcher = nullptr;
  ShardMetrics* metrics = nullptr;
};

// Calls `emit` with the header and the rows of each combine that answers one dispatch: its result
// in frames of at most `max_frame_bytes` of rows (at least one row each), or its error in one.
void SplitAnswer(uint64_t sequence, const absl::StatusOr<DispatchResult>& result, size_t row_bytes,
                 size_t max_frame_bytes,
                 absl::FunctionRef<void(const v1::ExpertCombine& header,
                                        absl::Span<const absl::Span<const uint8_t>> rows)>
                     emit);

// The same as frames for gRPC.
std::vector<grpc::ByteBuffer> EncodeAnswer(uint64_t sequence,
                                           const absl::StatusOr<DispatchResult>& result,
                                           size_t row_bytes, size_t max_frame_bytes);

// What a dispatch and its answer take, to bound what a stream has in flight.
size_t DispatchBytes(const v1::ExpertDispatch& header, size_t tensor_bytes,
                     const DispatchRules& rules);

// The requests that a dispatch is the first to compute for, one line each.
void LogNewRequests(const v1::ExpertDispatch& dispatch);

// One worker's stream of dispatches. Reads while the worker's dispatches that are not answered stay
// below the bounds, then leaves it to gRPC to push back. Reactions decode, check and queue; the
// batcher's thread answers. It lives until gRPC and the batcher have both let go of it.
class ForwardStream : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                      public std::enable_shared_from_this<ForwardStream> {
 public:
  // `parts` outlives the stream; `on_done` is called once gRPC has let go of the stream.
  static std::shared_ptr<ForwardStream> Start(const ShardParts* parts,
                                              absl::AnyInvocable<void()> on_done);

  // Refuses further dispatches with Unavailable and ends once the accepted ones are answered.
  void Drain();

 private:
  struct OutgoingFrame {
    grpc::ByteBuffer frame;
    bool ends_dispatch = false;
    size_t dispatch_bytes = 0;  // with ends_dispatch: what was counted for the dispatch
  };

  ForwardStream(const ShardParts* parts, absl::AnyInvocable<void()> on_done);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // Checks and queues a dispatch whose bytes are counted as unanswered.
  void Accept(DispatchFrame frame, size_t dispatch_bytes);
  void Answer(uint64_t sequence, size_t dispatch_bytes,
              const absl::StatusOr<DispatchResult>& result);
  // Called by whoever set writing_.
  void StartWriteOfFront();
  // Starts the next read, or ends the stream, when it is time to. Reactions only: gRPC keeps the
  // call until they return, whatever another thread finishes meanwhile.
  void Continue();
  void FinishIfTime();
  bool MayRead() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MayFinish() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ShardParts* const parts_;
  absl::AnyInvocable<void()> on_done_;
  std::shared_ptr<ForwardStream> self_;  // gRPC's reference, dropped in OnDone
  const uint64_t worker_;
  const std::shared_ptr<std::atomic<bool>> abandoned_;
  grpc::ByteBuffer incoming_;  // owned by the read in progress

  absl::Mutex mutex_;
  std::deque<OutgoingFrame> outgoing_ ABSL_GUARDED_BY(mutex_);  // front: being written
  int unanswered_frames_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t unanswered_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool read_ended_ ABSL_GUARDED_BY(mutex_) = false;  // the worker sends no more
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;      // cancelled, or a write failed
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status final_status_ ABSL_GUARDED_BY(mutex_);  // why reading ended, if not at its end
};

}  // namespace conclave
