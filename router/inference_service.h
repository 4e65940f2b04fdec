#pragma once

#include "proto/conclave/v1/inference.grpc.pb.h"
#include "router/request_engine.h"
#include "router/router_metrics.h"

namespace conclave {

// The gRPC door of the engine: decodes, acts, encodes. A slow reader holds back its own request
// alone: the next events are asked for when the last were written.
class InferenceService final : public v1::Inference::CallbackService {
 public:
  // Borrowed; both outlive the server.
  InferenceService(RequestEngine* engine, RouterMetrics* metrics)
      : engine_(engine), metrics_(metrics) {}

  grpc::ServerWriteReactor<v1::ChatEvent>* Chat(grpc::CallbackServerContext* context,
                                                const v1::ChatRequest* request) override;
  grpc::ServerWriteReactor<v1::GenerateEvent>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Control(grpc::CallbackServerContext* context,
                                    const v1::ControlRequest* request,
                                    v1::ControlResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* GetCluster(grpc::CallbackServerContext* context,
                                       const v1::GetClusterRequest* request,
                                       v1::ClusterStatus* response) override;

 private:
  void FinishUnary(grpc::CallbackServerContext* context, grpc::ServerUnaryReactor* reactor,
                   absl::string_view method, const absl::Status& status);

  RequestEngine* const engine_;
  RouterMetrics* const metrics_;
};

}  // namespace conclave
