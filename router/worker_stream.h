#pragma once

#include <grpcpp/client_context.h>

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/conclave/v1/worker.grpc.pb.h"
#include "router/worker_pool.h"

namespace conclave {

// One Generate call to one worker. It reads an event only when asked to, so a slow client holds
// back the worker and nothing is buffered here. Lives until the call has ended. Thread-safe.
class WorkerStream final : public grpc::ClientReadReactor<v1::TokenEvent> {
 public:
  // Called from gRPC's threads; OnStreamAccepted may run beside the first OnStreamEvent.
  class Listener {
   public:
    virtual ~Listener() = default;
    // The worker took the request into its queue: it did not refuse it.
    virtual void OnStreamAccepted(WorkerStream* stream) = 0;
    virtual void OnStreamEvent(WorkerStream* stream, v1::TokenEvent event) = 0;
    // Last call. The call's status: OK too if the worker ended it before it was finished.
    virtual void OnStreamEnd(WorkerStream* stream, absl::Status status) = 0;
  };

  static std::shared_ptr<WorkerStream> Start(std::unique_ptr<WorkerLease> lease,
                                             v1::TokenRequest request, absl::Time deadline,
                                             const std::string& traceparent,
                                             std::shared_ptr<Listener> listener);

  // Asks for the next event; after an event, and at the start. The answer is OnStreamEvent or
  // OnStreamEnd.
  void Read();
  // The last event was seen: lets the call end by itself.
  void Drain();
  // Ends the call. OnStreamEnd still comes.
  void Cancel();

  WorkerLease& lease() { return *lease_; }
  const std::string& request_id() const { return request_.request_id(); }

 private:
  WorkerStream(std::unique_ptr<WorkerLease> lease, v1::TokenRequest request,
               std::shared_ptr<Listener> listener);

  void OnReadInitialMetadataDone(bool ok) override;
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  const std::unique_ptr<WorkerLease> lease_;
  const v1::TokenRequest request_;
  grpc::ClientContext context_;
  v1::TokenEvent event_;
  std::shared_ptr<Listener> listener_;
  std::shared_ptr<WorkerStream> self_;  // until OnDone

  absl::Mutex mutex_;
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool discarding_ ABSL_GUARDED_BY(mutex_) = false;  // drained or cancelled: nobody listens
  // gRPC ends the call no earlier than we release this, for reads come from outside its reactions.
  bool held_ ABSL_GUARDED_BY(mutex_) = true;
};

}  // namespace conclave
