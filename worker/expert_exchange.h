#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/bfloat16.h"
#include "proto/conclave/v1/expert_shard.pb.h"
#include "proto/conclave/v1/worker.pb.h"

namespace conclave {

// The tokens of one step at one sparse layer, after the gate.
struct ExpertBatch {
  int layer = 0;
  const BFloat16* hidden_states = nullptr;  // [num_rows, hidden_size]
  const int32_t* topk_ids = nullptr;        // [num_rows, num_experts_per_tok], global expert ids
  int64_t num_rows = 0;
};

class OverlappingExchange;

// Where a worker's experts run: in process, on shards over gRPC, or some of each. Every kind
// returns one BF16 row per (token, expert) pair and so the same bits.
class ExpertExchange {
 public:
  virtual ~ExpertExchange() = default;

  // Computes every pair but those of experts that the caller runs itself (their pointers are null):
  // expert_rows[r * num_experts_per_tok + k] points to the [hidden_size] row
  // of expert topk_ids[r, k] for row r. The pointers hold until the next Run. Blocks; called by
  // the engine's thread alone. A lost shard is retried on a replica, or waited for, before this
  // returns: no pair is ever skipped.
  // Errors: Unavailable (no shard serves an expert, after the wait), FailedPrecondition (a shard
  // of another model), InvalidArgument (our own frame was refused: a bug).
  virtual absl::Status Run(const ExpertBatch& batch, std::vector<const BFloat16*>& expert_rows) = 0;

  // This exchange if it can also compute a layer in two parts, else null: experts in process have
  // nobody else to compute meanwhile.
  virtual OverlappingExchange* overlapping() { return nullptr; }

  // OK when every expert is reachable now; else Unavailable saying which is not.
  virtual absl::Status Ready() = 0;

  // A request was accepted: whoever computes for it elsewhere is told its names with what is sent
  // next. Any thread.
  virtual void Announce(const v1::RequestTag& /*request*/) {}

  // A Run in progress, and every later one, returns Unavailable soon: whoever joins the engine's
  // thread does not wait for a lost shard. Any thread.
  virtual void Stop() {}

  // For Describe and `conclave status`; empty for experts in process. Any thread.
  virtual std::vector<v1::ShardState> Shards() = 0;
};

// An exchange that lets its caller compute while the experts are at work elsewhere: a batch is
// started, and finished later; two may be on their way at a time. By the engine's thread alone.
class OverlappingExchange : public ExpertExchange {
 public:
  static constexpr int kParts = 2;

  OverlappingExchange* overlapping() final { return this; }

  // Sends the batch as `part`, 0..kParts-1, which is not on its way. Returns before it is computed.
  // What `batch` points to and `expert_rows` stay as they are until Finish. Errors as of Run.
  virtual absl::Status Start(int part, const ExpertBatch& batch,
                             std::vector<const BFloat16*>& expert_rows) = 0;

  // Blocks until the part's pairs are computed; its expert_rows are then as after Run, until its
  // next Start. Lost shards and errors as in Run.
  virtual absl::Status Finish(int part) = 0;

  // Forgets every part on its way: after an error, of Start and Finish or of the caller's own.
  virtual void GiveUp() = 0;
};

}  // namespace conclave
