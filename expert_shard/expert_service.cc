#include "expert_shard/expert_service.h"

#include <utility>
#include <vector>

#include "common/check.h"
#include "common/errors.h"
#include "common/log.h"
#include "expert_shard/weight_loader.h"
#include "rpc/grpc_status.h"
#include "rpc/nccl_link.h"
#include "rpc/shared_memory_link.h"

namespace conclave {
namespace {

// A stream that ends at once.
template <typename Request, typename Response>
class RefusedStream : public grpc::ServerBidiReactor<Request, Response> {
 public:
  explicit RefusedStream(const absl::Status& status) { this->Finish(ToGrpcStatus(status)); }
  void OnDone() override { delete this; }
};
using RefusedForward = RefusedStream<grpc::ByteBuffer, grpc::ByteBuffer>;

}  // namespace

v1::ShardDescription MakeShardDescription(const std::string& model_name, const Qwen3Config& config,
                                          const std::string& fingerprint,
                                          const ExpertRunner& runner, uint64_t placement_epoch) {
  v1::ShardDescription description;
  v1::ModelInfo& model = *description.mutable_model();
  model.set_name(model_name);
  model.set_architecture(std::string(ArchitectureName(config.architecture)));
  model.set_fingerprint(FingerprintAs(fingerprint, runner.dtype()));
  model.set_num_hidden_layers(config.num_hidden_layers);
  model.set_hidden_size(config.hidden_size);
  model.set_num_experts(config.num_experts);
  model.set_num_experts_per_tok(config.num_experts_per_tok);
  model.set_vocab_size(config.vocab_size);
  model.set_max_context(config.MaxContext());
  model.set_weight_dtype(std::string(WeightDtypeName(runner.dtype())));
  for (const int expert : runner.expert_ids()) description.add_expert_ids(expert);
  description.set_placement_epoch(placement_epoch);
  description.set_dtype("bf16");
  description.set_weight_bytes(runner.weight_bytes());
  return description;
}

ExpertService::~ExpertService() {
  absl::MutexLock lock(&mutex_);
  CHECK(streams_.empty() && link_streams_.empty())
      << "the server must stop before its service is gone";
}

void ExpertService::Activate(v1::ShardDescription description, DispatchRules rules,
                             TokenBatcher* batcher) {
  CHECK(owned_ == nullptr) << "activated twice";
  owned_ = std::make_unique<Active>(
      Active{std::move(description), ShardParts{std::move(rules), batcher, metrics_}});
  active_.store(owned_.get(), std::memory_order_release);
  metrics_->ready.Set(1);
}

void ExpertService::BeginDrain() {
  std::vector<std::shared_ptr<ForwardStream>> streams;
  std::vector<std::shared_ptr<LinkStream>> link_streams;
  {
    absl::MutexLock lock(&mutex_);
    if (draining_.exchange(true)) return;
    for (const auto& [id, stream] : streams_) streams.push_back(stream);
    for (const auto& [id, stream] : link_streams_) link_streams.push_back(stream);
  }
  metrics_->ready.Set(0);
  metrics_->drains_total.Increment();
  LOG_INFO("draining {} streams", streams.size());
  for (const auto& stream : link_streams) stream->Drain();
  for (const auto& stream : streams) stream->Drain();
}

grpc::ServerUnaryReactor* ExpertService::Describe(grpc::CallbackServerContext* context,
                                                  const v1::DescribeShardRequest* /*request*/,
                                                  v1::ShardDescription* response) {
  const Active* active = active_.load(std::memory_order_acquire);
  if (active != nullptr) {
    *response = active->description;
    response->set_ready(!draining_.load() && active->parts.batcher->health().ok());
    response->set_rows_computed(static_cast<uint64_t>(active->parts.batcher->pairs_computed()));
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ExpertService::Forward(
    grpc::CallbackServerContext* /*context*/) {
  const Active* active = active_.load(std::memory_order_acquire);
  if (active == nullptr) {
    return new RefusedForward(absl::UnavailableError("the expert shard is loading its experts"));
  }
  // Under the lock, so that a drain either refuses this stream or finds it in streams_.
  absl::MutexLock lock(&mutex_);
  if (draining_.load()) return new RefusedForward(errors::Draining("expert shard"));
  const int64_t id = next_stream_id_++;
  std::shared_ptr<ForwardStream> stream = ForwardStream::Start(&active->parts, [this, id] {
    absl::MutexLock on_done_lock(&mutex_);
    streams_.erase(id);
  });
  streams_.emplace(id, stream);
  return stream.get();
}

template <typename Offer, typename Answer>
grpc::ServerBidiReactor<Offer, Answer>* ExpertService::OpenLink(
    const absl::Status& allowed, prometheus::Gauge* workers,
    absl::StatusOr<std::unique_ptr<FrameLink>> (ExpertService::*accept)(const Offer& offer,
                                                                        const Active& active,
                                                                        Answer* answer)) {
  using Refused = RefusedStream<Offer, Answer>;
  if (!allowed.ok()) return new Refused(allowed);
  const Active* active = active_.load(std::memory_order_acquire);
  if (active == nullptr) {
    return new Refused(absl::UnavailableError("the expert shard is loading its experts"));
  }
  absl::MutexLock lock(&mutex_);  // as in Forward
  if (draining_.load()) return new Refused(errors::Draining("expert shard"));
  const int64_t id = next_stream_id_++;
  auto stream = OfferStream<Offer, Answer>::Start(
      &active->parts, workers,
      [this, active, accept](const Offer& offer, Answer* answer) {
        return (this->*accept)(offer, *active, answer);
      },
      [this, id] {
        absl::MutexLock on_done_lock(&mutex_);
        link_streams_.erase(id);
      });
  link_streams_.emplace(id, stream);
  return stream.get();
}

grpc::ServerBidiReactor<v1::SharedMemoryOffer, v1::SharedMemoryAnswer>*
ExpertService::OpenSharedMemory(grpc::CallbackServerContext* /*context*/) {
  const absl::Status allowed =
      shared_memory_ ? absl::OkStatus()
                     : absl::FailedPreconditionError("the shard runs with --shared_memory=off");
  return OpenLink(allowed, &metrics_->shared_memory_workers, &ExpertService::AcceptMemory);
}

absl::StatusOr<std::unique_ptr<FrameLink>> ExpertService::AcceptMemory(
    const v1::SharedMemoryOffer& offer, const Active& active, v1::SharedMemoryAnswer* answer) {
  TokenBatcher& batcher = *active.parts.batcher;
  return AcceptSharedMemory(offer, batcher.bell(), &batcher.pool(), answer);
}

grpc::ServerBidiReactor<v1::NcclOffer, v1::NcclAnswer>* ExpertService::OpenNccl(
    grpc::CallbackServerContext* /*context*/) {
  const absl::Status allowed = nccl_ != nullptr
                                   ? absl::OkStatus()
                                   : absl::FailedPreconditionError("the shard runs without NCCL");
  return OpenLink(allowed, &metrics_->nccl_workers, &ExpertService::AcceptNcclOffer);
}

absl::StatusOr<std::unique_ptr<FrameLink>> ExpertService::AcceptNcclOffer(
    const v1::NcclOffer& offer, const Active& active, v1::NcclAnswer* answer) {
  const NcclPeers peers{active.description.model().fingerprint(),
                        active.description.placement_epoch(),
                        static_cast<int>(active.description.model().hidden_size())};
  return AcceptNccl(offer, nccl_, peers, &active.parts.batcher->bell(), answer);
}

}  // namespace conclave
