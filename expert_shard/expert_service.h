#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "expert_shard/forward_stream.h"
#include "expert_shard/link_stream.h"
#include "model/qwen3_config.h"
#include "proto/conclave/v1/expert_shard.grpc.pb.h"
#include "rpc/nccl_transport.h"

namespace conclave {

// What Describe answers about a loaded shard, but for `ready` and `rows_computed`.
v1::ShardDescription MakeShardDescription(const std::string& model_name, const Qwen3Config& config,
                                          const std::string& fingerprint,
                                          const ExpertRunner& runner, uint64_t placement_epoch);

// The gRPC face of a shard. It serves from the start: until Activate, Describe says not ready and
// streams are refused with Unavailable.
class ExpertService final
    : public v1::ExpertShard::WithRawCallbackMethod_Forward<
          v1::ExpertShard::WithCallbackMethod_OpenNccl<
              v1::ExpertShard::WithCallbackMethod_OpenSharedMemory<
                  v1::ExpertShard::WithCallbackMethod_Describe<v1::ExpertShard::Service>>>> {
 public:
  // `shared_memory`: whether workers of this host may send their dispatches that way. `nccl`
  // (borrowed; may be null): what they may send them by.
  explicit ExpertService(ShardMetrics* metrics, bool shared_memory = true,
                         NcclTransport* nccl = nullptr)
      : metrics_(metrics), shared_memory_(shared_memory), nccl_(nccl) {}
  ~ExpertService() override;  // the server has stopped

  // The experts are loaded: serves them from now on. Call once; `batcher` outlives the server.
  void Activate(v1::ShardDescription description, DispatchRules rules, TokenBatcher* batcher);

  // Takes no more dispatches, answers the accepted ones, then ends every stream with Unavailable.
  // Does not wait: ServerRunner::DrainAndStop does. Any thread.
  void BeginDrain();

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeShardRequest* request,
                                     v1::ShardDescription* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Forward(
      grpc::CallbackServerContext* context) override;
  grpc::ServerBidiReactor<v1::SharedMemoryOffer, v1::SharedMemoryAnswer>* OpenSharedMemory(
      grpc::CallbackServerContext* context) override;
  grpc::ServerBidiReactor<v1::NcclOffer, v1::NcclAnswer>* OpenNccl(
      grpc::CallbackServerContext* context) override;

 private:
  struct Active {
    v1::ShardDescription description;
    ShardParts parts;
  };

  // Accepts a link if `allowed` is OK, or refuses it.
  template <typename Offer, typename Answer>
  grpc::ServerBidiReactor<Offer, Answer>* OpenLink(
      const absl::Status& allowed, prometheus::Gauge* workers,
      absl::StatusOr<std::unique_ptr<FrameLink>> (ExpertService::*accept)(const Offer& offer,
                                                                          const Active& active,
                                                                          Answer* answer));
  absl::StatusOr<std::unique_ptr<FrameLink>> AcceptMemory(const v1::SharedMemoryOffer& offer,
                                                          const Active& active,
                                                          v1::SharedMemoryAnswer* answer);
  absl::StatusOr<std::unique_ptr<FrameLink>> AcceptNcclOffer(const v1::NcclOffer& offer,
                                                             const Active& active,
                                                             v1::NcclAnswer* answer);

  ShardMetrics* const metrics_;
  const bool shared_memory_;
  NcclTransport* const nccl_;
  std::unique_ptr<const Active> owned_;         // written once, before active_
  std::atomic<const Active*> active_{nullptr};  // null until the experts are loaded
  std::atomic<bool> draining_{false};

  absl::Mutex mutex_;
  int64_t next_stream_id_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<int64_t, std::shared_ptr<ForwardStream>> streams_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<int64_t, std::shared_ptr<LinkStream>> link_streams_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace conclave
