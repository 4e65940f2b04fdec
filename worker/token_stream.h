#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <deque>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/conclave/v1/expert_shard.pb.h"
#include "proto/conclave/v1/worker.pb.h"
#include "worker/sequence.h"

namespace conclave {

// Writes one request's events to its gRPC stream. The engine's thread fills it, gRPC's threads
// empty it; it outlives the reactor for as long as the engine holds it.
class TokenStream final : public TokenSink {
 public:
  // With the reactor to hand back to gRPC, which deletes itself. Nothing is written before Open.
  // `tag` names the request in logs.
  static std::pair<std::shared_ptr<TokenStream>, grpc::ServerWriteReactor<v1::TokenEvent>*> Create(
      v1::RequestTag tag);

  // Once, after the engine accepted the request, which the caller learns at once by the initial
  // metadata; or after OnDone if it did not.
  void Open(bool accepted);

  void OnEvent(v1::TokenEvent event) override;
  void OnDone(const absl::Status& status) override;
  bool Writable() const override;
  bool Cancelled() const override;

 private:
  class Reactor;

  void OnWriteDone(bool ok);
  void OnCancel();
  void OnReactorDone();
  // What to start next, decided under the lock and started outside it: gRPC may run the reaction
  // of an operation inside the call that starts it.
  void Advance();

  mutable absl::Mutex mutex_;
  v1::RequestTag tag_ ABSL_GUARDED_BY(mutex_);
  int64_t num_ids_ ABSL_GUARDED_BY(mutex_) = 0;                // of all events
  Reactor* reactor_ ABSL_GUARDED_BY(mutex_) = nullptr;         // null once gRPC is done with it
  std::deque<v1::TokenEvent> unsent_ ABSL_GUARDED_BY(mutex_);  // front: being written
  int64_t unsent_ids_ ABSL_GUARDED_BY(mutex_) = 0;
  bool opened_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;  // no more events
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace conclave
