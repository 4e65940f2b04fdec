#pragma once

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/errors.h"
#include "common/log.h"
#include "expert_shard/forward_stream.h"
#include "expert_shard/link_dispatch_source.h"
#include "rpc/grpc_status.h"

namespace conclave {

// A call that a worker agrees on a link with.
class LinkStream {
 public:
  virtual ~LinkStream() = default;
  // Refuses further dispatches with Unavailable and ends once the accepted ones are answered.
  virtual void Drain() = 0;
};

// The same for each kind of link: one offer in, one answer out, and dispatches come through the
// link as long as the call is open. It lives until gRPC has let go of it. Start it with Begin.
template <typename Offer, typename Answer>
class OfferStream : public grpc::ServerBidiReactor<Offer, Answer>,
                    public LinkStream,
                    public std::enable_shared_from_this<OfferStream<Offer, Answer>> {
 public:
  // Makes the link that is offered, or says why not. What it returns goes back in `answer`.
  using Accept = absl::AnyInvocable<absl::StatusOr<std::unique_ptr<FrameLink>>(const Offer& offer,
                                                                               Answer* answer)>;

  // `parts` outlives the stream; `workers` counts those whose link is open; `on_done` is called
  // once gRPC has let go of the stream.
  static std::shared_ptr<OfferStream> Start(const ShardParts* parts, prometheus::Gauge* workers,
                                            Accept accept, absl::AnyInvocable<void()> on_done) {
    std::shared_ptr<OfferStream> stream(
        new OfferStream(parts, workers, std::move(accept), std::move(on_done)));
    stream->self_ = stream;
    stream->StartRead(&stream->offer_);
    return stream;
  }

  void Drain() override {
    std::shared_ptr<LinkDispatchSource> source;
    {
      absl::MutexLock lock(&mutex_);
      draining_ = true;
      source = source_;
    }
    if (source == nullptr) return End(errors::Draining("expert shard"));
    source->Drain();
    parts_->batcher->bell().Ring();
  }

 private:
  OfferStream(const ShardParts* parts, prometheus::Gauge* workers, Accept accept,
              absl::AnyInvocable<void()> on_done)
      : parts_(parts),
        workers_(workers),
        accept_(std::move(accept)),
        on_done_(std::move(on_done)) {}

  // Makes the link and lets the batcher read from it.
  absl::Status OpenLink() {
    absl::StatusOr<std::unique_ptr<FrameLink>> link = accept_(offer_, &answer_);
    if (!link.ok()) return link.status();
    auto source = std::make_shared<LinkDispatchSource>(
        parts_, *std::move(link), [weak = this->weak_from_this()](absl::Status status) {
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
    workers_->Increment();
    parts_->batcher->AddSource(std::move(source));
    return absl::OkStatus();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End(absl::CancelledError("the worker ended the link"));
    if (std::exchange(offered_, true)) return End(absl::InvalidArgumentError("a second offer"));
    const absl::Status opened = OpenLink();
    if (!opened.ok()) {
      LOG_INFO("a worker's offer of a link is refused: {}", opened.ToString());
      return End(opened);
    }
    this->StartWrite(&answer_);
  }

  void OnWriteDone(bool ok) override {
    bool ended = false;
    {
      absl::MutexLock lock(&mutex_);
      writing_ = false;
      ended = ended_;
    }
    if (!ok) End(absl::CancelledError("the worker has gone"));
    if (ended) return FinishIfTime();
    if (ok) this->StartRead(&offer_);  // comes back at the call's end
  }

  void OnCancel() override { End(absl::CancelledError("the worker has gone")); }

  // Once: the first reason counts.
  void End(const absl::Status& status) {
    std::shared_ptr<LinkDispatchSource> source;
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

  void FinishIfTime() {
    absl::Status status;
    {
      absl::MutexLock lock(&mutex_);
      if (!ended_ || writing_ || finished_) return;
      finished_ = true;
      status = end_status_;
    }
    this->Finish(ToGrpcStatus(status));
  }

  void OnDone() override {
    std::shared_ptr<LinkDispatchSource> source;
    {
      absl::MutexLock lock(&mutex_);
      source = std::move(source_);
    }
    if (source != nullptr) {
      parts_->batcher->RemoveSource(source.get());
      parts_->batcher->RemoveWorker(source->worker());
      workers_->Decrement();
    }
    on_done_();
    self_.reset();  // may delete this
  }

  const ShardParts* const parts_;
  prometheus::Gauge* const workers_;
  Accept accept_;
  absl::AnyInvocable<void()> on_done_;
  std::shared_ptr<OfferStream> self_;  // gRPC's reference, dropped in OnDone
  Offer offer_;
  Answer answer_;
  bool offered_ = false;  // reactions only

  absl::Mutex mutex_;
  std::shared_ptr<LinkDispatchSource> source_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace conclave
