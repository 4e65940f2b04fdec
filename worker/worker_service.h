#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "proto/conclave/v1/model.pb.h"
#include "proto/conclave/v1/worker.grpc.pb.h"
#include "worker/engine.h"
#include "worker/expert_exchange.h"

namespace conclave {

// conclave.v1.Worker over one engine. Serves from the moment the port is bound: until SetEngine,
// Describe says why it is not ready and Generate answers UNAVAILABLE.
class WorkerService final : public v1::Worker::CallbackService {
 public:
  explicit WorkerService(v1::ModelInfo model);

  // The weights are loaded. `experts` is null for a dense model. Both must outlive the service's
  // server. Call once.
  void SetEngine(Engine* engine, ExpertExchange* experts, bool local_experts);

  // OK if a request sent now would run: loaded, every expert reachable, not draining, the device
  // well.
  absl::Status Ready();
  void StartDraining();

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeWorkerRequest* request,
                                     v1::WorkerDescription* response) override;
  grpc::ServerWriteReactor<v1::TokenEvent>* Generate(grpc::CallbackServerContext* context,
                                                     const v1::TokenRequest* request) override;
  grpc::ServerUnaryReactor* Control(grpc::CallbackServerContext* context,
                                    const v1::WorkerControlRequest* request,
                                    v1::WorkerControlResponse* response) override;

 private:
  absl::StatusOr<Engine*> LoadedEngine();

  const v1::ModelInfo model_;
  absl::Mutex mutex_;
  Engine* engine_ ABSL_GUARDED_BY(mutex_) = nullptr;
  ExpertExchange* experts_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool local_experts_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace conclave
