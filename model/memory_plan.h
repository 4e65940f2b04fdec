#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/weight_dtype.h"
#include "model/qwen3_config.h"

namespace conclave {

// All weights, and those that one token uses (top-k experts, one row of the embedding counted as
// the whole matrix, as model cards count).
int64_t TotalParameters(const Qwen3Config& config);
int64_t ActiveParameters(const Qwen3Config& config);

// Weights in the BF16 they are computed in.
int64_t WorkerWeightBytes(const Qwen3Config& config);  // all but the experts
int64_t ExpertBytes(const Qwen3Config& config);        // one expert of one layer
// num_experts experts of every sparse layer.
int64_t ExpertWeightBytes(const Qwen3Config& config, int num_experts);

// The weights of one copy of the model by what they are, in the bytes they are stored in: BF16, or
// for the projections FP8 with an FP32 scale per 128 x 128 block if config.quantization says so.
struct BytesByKind {
  int64_t attention = 0;   // q, k, v and o projections
  int64_t dense_mlp = 0;   // of layers without experts
  int64_t experts = 0;     // every expert of every sparse layer
  int64_t one_expert = 0;  // of one layer
  int64_t gates = 0;
  int64_t norms = 0;
  int64_t embeddings = 0;  // embed_tokens and, unless tied, lm_head
  int64_t lm_head = 0;     // of those, the matrix that gives the logits
  int64_t Worker() const { return attention + dense_mlp + gates + norms + embeddings; }
  int64_t Total() const { return Worker() + experts; }
};
BytesByKind StoredWeightBytes(const Qwen3Config& config);

// What the checkpoint has its projections in: kFp8 or kBf16.
WeightDtype CheckpointDtype(const Qwen3Config& config);
// How lm_head is kept: as the others, but in no less than 8 bits. An error there falls on every
// logit directly, with no later layer to average it out.
WeightDtype LmHeadDtype(WeightDtype dtype);
// The same as processes on a CPU keep them (WeightBytes, padding included): matrices as `dtype`,
// but gates, embed_tokens and what an FP8 checkpoint has not as FP8 in BF16; norms in FP32. A tied
// lm_head is there once more. kFp8 for an FP8 checkpoint only.
BytesByKind PackedWeightBytes(const Qwen3Config& config, WeightDtype dtype);
// Of that, num_experts experts of every sparse layer.
int64_t PackedExpertBytes(const Qwen3Config& config, int num_experts, WeightDtype dtype);

// 2 (K and V) * layers * num_key_value_heads * head_dim * 2 bytes.
int64_t KvBytesPerToken(const Qwen3Config& config);

// What one process is to hold.
struct MemoryPlan {
  int64_t worker_weight_bytes = 0;  // 0 for a process that is no worker
  int64_t expert_weight_bytes = 0;
  int64_t kv_tokens = 0;
  int64_t kv_bytes_per_token = 0;
  int64_t workspace_bytes = 0;  // activations and buffers, the caller's estimate
  int64_t TotalBytes() const;
  // "worker weights 1.20 GB + experts 5.80 GB + KV 4096 tokens x 98304 B = 0.40 GB + workspace
  // 0.10 GB = 7.50 GB"
  std::string ToString() const;
};

// ResourceExhausted with the arithmetic if the plan needs more than available_bytes.
absl::Status CheckFits(const MemoryPlan& plan, int64_t available_bytes);

// Memory this process may still take: the kernel's MemAvailable, or what the cgroup's limit leaves
// if that is less. Internal if /proc cannot be read. `root` stands before /proc and /sys, for
// tests.
absl::StatusOr<int64_t> AvailableMemoryBytes(const std::string& root = "");

}  // namespace conclave
