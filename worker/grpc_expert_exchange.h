#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/limits.h"
#include "common/metrics.h"
#include "expert_shard/expert_runner.h"
#include "model/expert_placement.h"
#include "model/qwen3_config.h"
#include "rpc/buffer_pool.h"
#include "worker/exchange_inbox.h"
#include "worker/exchange_metrics.h"
#include "worker/expert_exchange.h"
#include "worker/pair_order.h"
#include "worker/shard_connection.h"
#include "worker/shard_set.h"

namespace conclave {

struct GrpcExpertExchangeOptions {
  // gRPC targets; several may hold the same experts. "dns:///NAME:PORT" stands for a shard at each
  // address of the name.
  std::vector<std::string> shards;
  std::shared_ptr<NameResolver> resolver;  // null: MakeDnsResolver()
  absl::Duration name_refresh = limits::kNameRefresh;
  std::string fingerprint;            // of the model: shards with another are refused
  std::string weight_dtype = "bf16";  // this worker's, for the words of that refusal
  Qwen3Config config;
  // Run by the caller itself, on its device: neither missing nor sent, their rows stay null.
  std::vector<int> experts_in_place;
  // Of the shard that this process serves itself, 0 if none: it may be among `shards`, and is left
  // alone, since its experts are at hand without a frame.
  uint64_t own_placement_epoch = 0;
  // A layer whose experts nobody serves waits this long for a shard to return.
  absl::Duration shard_wait = limits::kDefaultShardWait;
  absl::Duration dispatch_timeout = limits::kDispatchTimeout;
  // Frames go through shared memory where a shard is on this host and agrees.
  bool shared_memory = true;
  // Tensors go by NCCL where a shard of this host agrees; null: never. Borrowed; it outlives the
  // exchange.
  NcclTransport* nccl = nullptr;
  // Rows of dispatches by NCCL are FP8: half the bytes, and other results than by other ways.
  bool nccl_fp8_dispatches = false;
  absl::Duration link_retry = limits::kLinkRetryPause;
};

// Experts on shards over gRPC or, on one host, shared memory or NCCL, besides those of a local
// runner. A layer's pairs are split by expert; each expert's go to one of the shards that hold it;
// each row goes to a shard once. What a lost shard has not answered is sent to another that holds
// the expert, or waits for one.
class GrpcExpertExchange final : public OverlappingExchange {
 public:
  // Starts to resolve and to connect at once. `local` (may be null) runs the experts it holds;
  // `metrics` is borrowed.
  GrpcExpertExchange(GrpcExpertExchangeOptions options, std::unique_ptr<ExpertRunner> local,
                     Metrics* metrics);
  ~GrpcExpertExchange() override;

  absl::Status Run(const ExpertBatch& batch, std::vector<const BFloat16*>& expert_rows) override;
  absl::Status Start(int part, const ExpertBatch& batch,
                     std::vector<const BFloat16*>& expert_rows) override;
  absl::Status Finish(int part) override;
  void GiveUp() override;

  // Any thread. FailedPrecondition if an expert is missing and a shard has another model, else
  // Unavailable naming the expert and why each shard that is not up is not.
  absl::Status Ready() override;
  void Announce(const v1::RequestTag& request) override { shards_.Announce(request); }
  std::vector<v1::ShardState> Shards() override { return shards_.States(); }

  // Blocks until Ready() is OK; at the deadline returns what it says. Any thread.
  absl::Status AwaitReady(absl::Time deadline);

  void Stop() override { inbox_.Stop(); }

 private:
  // A batch of one layer, from Start to Finish. Its pairs are indices into `order`; each is local,
  // unassigned, in one outstanding dispatch, or answered.
  struct LayerPart {
    ExpertBatch batch;
    std::vector<const BFloat16*>* expert_rows = nullptr;
    PairOrder order;
    std::vector<uint32_t> local_pairs;
    std::vector<uint32_t> unassigned;
    std::vector<size_t> assigned_pairs;              // per shard, to balance replicas
    absl::Time assigned_at;                          // the last AssignPairs
    absl::Time lost_since = absl::InfiniteFuture();  // its first loss
    std::vector<TensorBytes> received;               // what expert_rows points into
    std::vector<BFloat16> local_output;
  };
  // A dispatch that is not fully answered.
  struct Outstanding {
    LayerPart* part = nullptr;
    int shard_idx = 0;
    std::shared_ptr<ShardConnection> shard;
    uint64_t path_id = 0;  // see ShardView
    Transport transport = Transport::kGrpc;
    std::vector<uint32_t> pairs;  // of the part, rising
    size_t num_answered = 0;
    absl::Time sent;
  };
  // Where the experts are, as of the last look.
  struct Placement {
    uint64_t changes = 0;  // the inbox's count before the look
    std::vector<ShardSet::Shard> shards;
    ExpertPlacement replicas;  // of the shards that are up and not leaving
  };
  Placement LookAtShards();
  // The engine's thread: placement_ is as the shards are now.
  void UpdatePlacement();
  bool IsLocal(int layer, int expert) const {
    return local_ != nullptr && local_->Holds(layer, expert);
  }
  absl::Status MissingExperts(const Placement& placement, int layer, absl::Span<const int> experts,
                              absl::Duration waited) const;
  static std::vector<int> ExpertsOf(const LayerPart& part, absl::Span<const uint32_t> pairs);

  // Steps of Start and Finish.
  void BeginPart(LayerPart& part, const ExpertBatch& batch,
                 std::vector<const BFloat16*>& expert_rows);
  absl::Status RunLocalPairs(LayerPart& part);
  // Sends the unassigned pairs of all parts to whoever holds their experts now.
  absl::Status AssignPairs();
  absl::Status AssignPairsOf(LayerPart& part);
  int ChooseShard(const LayerPart& part, int expert, absl::Time now);
  // What could not be sent stays unassigned.
  void SendPairs(LayerPart& part, int shard_idx, const std::vector<uint32_t>& pairs);
  // `rows` are consecutive ones of SendPairs, `pairs` those that use them.
  void SendFrame(LayerPart& part, int shard_idx, absl::Span<const uint32_t> rows,
                 std::vector<uint32_t> pairs);
  // False if the way to the shard has just ended.
  bool Transmit(const ExpertBatch& batch, int shard_idx, const v1::ExpertDispatch& header,
                absl::Span<const uint32_t> rows);
  bool IsComputed(const LayerPart& part) const;

  // What comes back, in grpc_expert_exchange_answers.cc.
  absl::Status WaitForNews();
  // Appends what came through shared memory to combines_; true if anything moved.
  bool PollLinks();
  absl::Status TakeCombine(ShardCombine combine);
  absl::Status TakeError(const Outstanding& dispatch, const v1::ExpertCombine& header);
  bool TakeRows(Outstanding& dispatch, CombineFrame& frame);
  absl::Status TakeBack(uint64_t sequence);
  // Takes it off the list, answered or not.
  Outstanding Close(uint64_t sequence);
  absl::Status TakeBackLost();
  void ResetTimedOut();
  absl::Time NextDeadline() const;

  const GrpcExpertExchangeOptions options_;
  const size_t row_bytes_;
  const std::unique_ptr<ExpertRunner> local_;
  ExchangeMetrics metrics_;
  BufferPool pool_{limits::kMaxIdleTensorBytes};
  ExchangeInbox inbox_;
  ShardSet shards_;

  // Below: the engine's thread only.
  Placement placement_;
  uint64_t last_sequence_ = 0;
  std::vector<bool> in_place_;          // [num_experts]
  std::vector<absl::Time> busy_until_;  // per shard: it refused a dispatch because it was full
  std::array<LayerPart, kParts> parts_;
  absl::flat_hash_map<uint64_t, Outstanding> outstanding_;  // by sequence, of all parts
  std::vector<int64_t> row_idx_;  // per row being sent: its place in a shard's rows
  std::vector<ShardCombine> combines_;
  std::vector<absl::Span<const uint8_t>> pieces_;  // the rows of the frame being sent
};

}  // namespace conclave
