#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "rpc/frame_link.h"
#include "rpc/grpc_status.h"

namespace conclave {

// A call to a shard that agrees on a link and is open as long as the link is used.
class LinkCall {
 public:
  // Both are called from threads that must not block: gRPC's, or the link's own.
  struct Events {
    // At most once, and not after on_end: the link is there.
    std::function<void(std::shared_ptr<FrameLink>)> on_open;
    // Once, last: why there is no link, or no more; never OK.
    std::function<void(absl::Status)> on_end;
  };

  virtual ~LinkCall() = default;

  // Ends the call with `reason`, without waiting for anything. Any thread.
  virtual void Cancel(absl::Status reason) = 0;
};

// The same for each kind of link: one offer out, one answer in, and the call lives until gRPC has
// let go of it.
template <typename Offer, typename Answer>
class OfferCall : public grpc::ClientBidiReactor<Offer, Answer>,
                  public LinkCall,
                  public std::enable_shared_from_this<OfferCall<Offer, Answer>> {
 public:
  void Cancel(absl::Status reason) override {
    {
      absl::MutexLock lock(&mutex_);
      if (reason_.ok()) reason_ = std::move(reason);
    }
    context_.TryCancel();
  }

 protected:
  explicit OfferCall(Events events) : events_(std::move(events)) {}

  // To be called once, after the call was started with context() on the stub.
  void Begin(std::shared_ptr<OfferCall> self, const Offer& offer) {
    self_ = std::move(self);
    offer_ = offer;
    this->StartWrite(&offer_);
    this->StartRead(&answer_);
    this->StartCall();
  }

  grpc::ClientContext* context() { return &context_; }

  // Opens the link, or begins to: it then calls Opened. Not OK: the call is of no use.
  virtual absl::Status OnAnswer(const Answer& answer) = 0;

  // The call has ended: a link that is still being opened is of no use.
  virtual void OnEnd() {}

  void Opened(std::shared_ptr<FrameLink> link) {
    absl::MutexLock lock(&events_mutex_);
    if (!ended_) events_.on_open(std::move(link));
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return;
    const absl::Status status =
        std::exchange(answered_, true)
            ? absl::InternalError("the shard answered the offer of a link twice")
            : OnAnswer(answer_);
    if (!status.ok()) Cancel(status);
    this->StartRead(&answer_);  // comes back with !ok at the call's end
  }

  void OnDone(const grpc::Status& status) override {
    absl::Status reason = FromGrpcStatus(status);
    {
      absl::MutexLock lock(&mutex_);
      if (!reason_.ok()) reason = reason_;
    }
    if (reason.ok()) reason = absl::UnavailableError("the shard ended the link");
    {
      absl::MutexLock lock(&events_mutex_);
      ended_ = true;
    }
    OnEnd();
    events_.on_end(std::move(reason));
    self_.reset();  // may delete this
  }

  const Events events_;
  grpc::ClientContext context_;
  Offer offer_;
  Answer answer_;
  bool answered_ = false;            // gRPC's reactions only
  std::shared_ptr<OfferCall> self_;  // gRPC's reference, dropped in OnDone

  absl::Mutex mutex_;
  absl::Status reason_ ABSL_GUARDED_BY(mutex_);  // of Cancel
  absl::Mutex events_mutex_;                     // held while on_open runs
  bool ended_ ABSL_GUARDED_BY(events_mutex_) = false;
};

}  // namespace conclave
