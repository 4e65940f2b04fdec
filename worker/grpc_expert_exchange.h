#pragma once

#include <array>
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
  // A layer whose experts nobody serves waits this long for a shard to return.
  absl::Duration shard_wait = limits::kDefaultShardWait;
  absl::Duration dispatch_timeout = limits::kDispatchTimeout;
  // Frames go through shared memory where a shard is on this host and agrees.
  bool shared_memory = true;
};

// Experts on shards over gRPC or, on one host, shared memory, besides those of a local runner. A
// layer's pairs are split by expert; each expert's go to one of the shards that hold it; each row
// goes to a shard once. What a lost shard has not answered is sent to another that holds the
// expert, or waits for one.
class GrpcExpertExchange final : public ExpertExchange {
 public:
  // Starts to resolve and to connect at once. `local` (may be null) runs the experts it holds;
  // `metrics` is borrowed.
  GrpcExpertExchange(GrpcExpertExchangeOptions options, std::unique_ptr<ExpertRunner> local,
                     Metrics* metrics);
  ~GrpcExpertExchange() override;

  absl::Status Run(const ExpertBatch& batch, std::vector<const BFloat16*>& expert_rows) override;

  // Any thread. FailedPrecondition if an expert is missing and a shard has another model, else
  // Unavailable naming the expert and why each shard that is not up is not.
  absl::Status Ready() override;
  void Announce(const v1::RequestTag& request) override { shards_.Announce(request); }
  std::vector<v1::ShardState> Shards() override { return shards_.States(); }

  // Blocks until Ready() is OK; at the deadline returns what it says. Any thread.
  absl::Status AwaitReady(absl::Time deadline);

  void Stop() override { inbox_.Stop(); }

 private:
  enum class Transport { kGrpc, kSharedMemory };
  // A dispatch that is not fully answered.
  struct Outstanding {
    int shard_idx = 0;
    std::shared_ptr<ShardConnection> shard;
    uint64_t path_id = 0;  // see ShardView
    Transport transport = Transport::kGrpc;
    std::vector<uint32_t> pairs;  // indices into order_, rising
    size_t num_answered = 0;
    absl::Time sent;
  };
  // Where the experts are, as of the last look.
  struct Placement {
    uint64_t changes = 0;  // the inbox's count before the look
    std::vector<ShardSet::Shard> shards;
    ExpertPlacement replicas;  // of the shards that are up and not leaving
  };
  struct ExchangeMetrics {
    explicit ExchangeMetrics(Metrics* metrics);
    struct OfTransport {
      prometheus::Counter* dispatch_bytes = nullptr;
      prometheus::Counter* combine_bytes = nullptr;
      prometheus::Histogram* dispatch_seconds = nullptr;
      prometheus::Counter* retries = nullptr;
    };
    OfTransport& of(Transport transport) { return transports[static_cast<size_t>(transport)]; }
    std::array<OfTransport, 2> transports;
    prometheus::Counter& local_rows;
    prometheus::Gauge& missing_experts;
    prometheus::Gauge& shards_with_other_model;
  };

  Placement LookAtShards();
  // The engine's thread: placement_ is as the shards are now.
  void UpdatePlacement();
  bool IsLocal(int layer, int expert) const {
    return local_ != nullptr && local_->Holds(layer, expert);
  }
  absl::Status MissingExpert(const Placement& placement, int layer, int expert,
                             absl::Duration waited) const;

  // Steps of Run. Pairs are indices into order_; a pair is local, unassigned, in one outstanding
  // dispatch, or answered.
  void BeginLayer(const ExpertBatch& batch, std::vector<const BFloat16*>& expert_rows);
  absl::Status RunLocalPairs();
  absl::Status AssignPairs();
  int ChooseShard(int expert, absl::Time now);
  // What could not be sent stays unassigned.
  void SendPairs(int shard_idx, const std::vector<uint32_t>& pairs);
  // `rows` are consecutive ones of SendPairs, `pairs` those that use them.
  void SendFrame(int shard_idx, absl::Span<const uint32_t> rows, std::vector<uint32_t> pairs);
  // False if the way to the shard has just ended.
  bool Transmit(int shard_idx, const v1::ExpertDispatch& header, absl::Span<const uint32_t> rows);
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
  std::vector<absl::Time> busy_until_;  // per shard: it refused a dispatch because it was full
  // Of the layer being run:
  ExpertBatch batch_;
  std::vector<const BFloat16*>* expert_rows_ = nullptr;
  PairOrder order_;
  std::vector<uint32_t> local_pairs_;
  std::vector<uint32_t> unassigned_;
  absl::flat_hash_map<uint64_t, Outstanding> outstanding_;  // by sequence
  std::vector<size_t> assigned_pairs_;                      // per shard, to balance replicas
  std::vector<int64_t> row_idx_;                            // per row: its place in a shard's rows
  absl::Time assigned_at_;                                  // the last AssignPairs
  absl::Time lost_since_ = absl::InfiniteFuture();          // first loss of this layer
  std::vector<TensorBytes> received_;                       // what expert_rows points into
  std::vector<BFloat16> local_output_;
  std::vector<ShardCombine> combines_;
  std::vector<absl::Span<const uint8_t>> pieces_;  // the rows of the frame being sent
};

}  // namespace conclave
