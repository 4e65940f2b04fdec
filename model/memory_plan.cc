#include "model/memory_plan.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/weight_catalog.h"

namespace conclave {
namespace {

int64_t Elements(const WeightSpec& spec) {
  int64_t count = 1;
  for (const int64_t dimension : spec.shape) count *= dimension;
  return count;
}

constexpr int64_t kFp8Block = 128;

int64_t StoredBytes(const Qwen3Config& config, const WeightSpec& spec) {
  if (!spec.quantized || config.quantization == WeightQuantization::kNone) {
    return 2 * Elements(spec);
  }
  int64_t num_scales = 1;
  for (const int64_t dimension : spec.shape) num_scales *= (dimension + kFp8Block - 1) / kFp8Block;
  return Elements(spec) + 4 * num_scales;
}

int64_t* KindOf(const WeightSpec& spec, BytesByKind& bytes) {
  if (spec.expert >= 0) return &bytes.experts;
  if (absl::StrContains(spec.name, "norm")) return &bytes.norms;
  if (absl::StrContains(spec.name, "self_attn")) return &bytes.attention;
  if (absl::EndsWith(spec.name, ".mlp.gate.weight")) return &bytes.gates;
  if (absl::StrContains(spec.name, ".mlp.")) return &bytes.dense_mlp;
  return &bytes.embeddings;
}

int64_t WorkerParameters(const Qwen3Config& config) {
  int64_t count = 0;
  for (const WeightSpec& spec : WeightCatalog(config)) {
    if (spec.owner == WeightOwner::kWorker) count += Elements(spec);
  }
  return count;
}

int64_t ExpertParameters(const Qwen3Config& config) {  // gate_proj, up_proj and down_proj
  return int64_t{3} * config.hidden_size * config.moe_intermediate_size;
}

// Kept as BF16 whatever is asked: the gate, because an error that swaps two experts changes the
// whole output, and it is less than a hundredth of the weights.
bool StaysBf16(const WeightSpec& spec) {
  return spec.shape.size() != 2 || spec.name == kEmbedTokensName ||
         absl::EndsWith(spec.name, ".mlp.gate.weight");
}

int64_t PackedBytes(const WeightSpec& spec, WeightDtype dtype) {
  if (spec.shape.size() == 1) return spec.shape[0] * static_cast<int64_t>(sizeof(float));
  const WeightDtype kept = StaysBf16(spec) || (dtype == WeightDtype::kFp8 && !spec.quantized)
                               ? WeightDtype::kBf16
                               : dtype;
  return static_cast<int64_t>(WeightBytes(kept, spec.shape[0], spec.shape[1]));
}

std::string Gigabytes(int64_t bytes) {
  return absl::StrFormat("%.2f GB", static_cast<double>(bytes) / 1e9);
}

// The number after `key` at the start of a line, as /proc/meminfo and memory.stat are written.
std::optional<int64_t> FieldOf(const std::string& path, absl::string_view key) {
  std::ifstream file(path);
  std::string word, rest;
  int64_t value = 0;
  while (file >> word) {
    if (word == key && file >> value) return value;
    std::getline(file, rest);
  }
  return std::nullopt;
}

// The number that is all of the file; nullopt for "max" or no file.
std::optional<int64_t> NumberIn(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

}  // namespace

int64_t TotalParameters(const Qwen3Config& config) {
  return WorkerParameters(config) +
         int64_t{config.NumSparseLayers()} * config.num_experts * ExpertParameters(config);
}

int64_t ActiveParameters(const Qwen3Config& config) {
  return WorkerParameters(config) +
         int64_t{config.NumSparseLayers()} * config.num_experts_per_tok * ExpertParameters(config);
}

int64_t WorkerWeightBytes(const Qwen3Config& config) { return 2 * WorkerParameters(config); }

int64_t ExpertBytes(const Qwen3Config& config) { return 2 * ExpertParameters(config); }

int64_t ExpertWeightBytes(const Qwen3Config& config, int num_experts) {
  return int64_t{config.NumSparseLayers()} * num_experts * ExpertBytes(config);
}

BytesByKind StoredWeightBytes(const Qwen3Config& config) {
  BytesByKind bytes;
  for (const WeightSpec& spec : WeightCatalog(config)) {
    const int64_t size = StoredBytes(config, spec);
    *KindOf(spec, bytes) += size;
    if (spec.name == LmHeadName(config)) bytes.lm_head = size;
  }
  if (config.num_experts > 0) {
    bytes.one_expert = bytes.experts / std::max(1, config.NumSparseLayers() * config.num_experts);
  }
  return bytes;
}

WeightDtype CheckpointDtype(const Qwen3Config& config) {
  return config.quantization == WeightQuantization::kFp8Block128 ? WeightDtype::kFp8
                                                                 : WeightDtype::kBf16;
}

WeightDtype LmHeadDtype(WeightDtype dtype) {
  return dtype == WeightDtype::kInt4 ? WeightDtype::kInt8 : dtype;
}

BytesByKind PackedWeightBytes(const Qwen3Config& config, WeightDtype dtype) {
  BytesByKind bytes;
  for (const WeightSpec& spec : WeightCatalog(config)) {
    if (spec.owner != WeightOwner::kWorker) continue;
    const bool lm_head = spec.name == kLmHeadName;
    *KindOf(spec, bytes) += PackedBytes(spec, lm_head ? LmHeadDtype(dtype) : dtype);
  }
  const WeightDtype head = dtype == WeightDtype::kFp8 ? WeightDtype::kBf16 : LmHeadDtype(dtype);
  bytes.lm_head = static_cast<int64_t>(WeightBytes(head, config.vocab_size, config.hidden_size));
  if (config.tie_word_embeddings) bytes.embeddings += bytes.lm_head;
  if (config.num_experts == 0) return bytes;
  const int64_t width = config.moe_intermediate_size, hidden = config.hidden_size;
  bytes.one_expert = static_cast<int64_t>(WeightBytes(dtype, 2 * width, hidden) +
                                          WeightBytes(dtype, hidden, width));
  bytes.experts = bytes.one_expert * config.NumSparseLayers() * config.num_experts;
  return bytes;
}

int64_t PackedExpertBytes(const Qwen3Config& config, int num_experts, WeightDtype dtype) {
  return PackedWeightBytes(config, dtype).one_expert * config.NumSparseLayers() * num_experts;
}

int64_t KvBytesPerToken(const Qwen3Config& config) {
  return int64_t{2} * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2;
}

int64_t MemoryPlan::TotalBytes() const {
  return worker_weight_bytes + expert_weight_bytes + kv_tokens * kv_bytes_per_token +
         workspace_bytes;
}

std::string MemoryPlan::ToString() const {
  return absl::StrCat("worker weights ", Gigabytes(worker_weight_bytes), " + experts ",
                      Gigabytes(expert_weight_bytes), " + KV ", kv_tokens, " tokens x ",
                      kv_bytes_per_token, " B = ", Gigabytes(kv_tokens * kv_bytes_per_token),
                      " + workspace ", Gigabytes(workspace_bytes), " = ", Gigabytes(TotalBytes()));
}

absl::Status CheckFits(const MemoryPlan& plan, int64_t available_bytes) {
  if (plan.TotalBytes() <= available_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("memory needed is ", plan.ToString(),
                                                   ", want at most ", Gigabytes(available_bytes),
                                                   " (what is available)"));
}

absl::StatusOr<int64_t> AvailableMemoryBytes(const std::string& root) {
  const std::optional<int64_t> kilobytes = FieldOf(root + "/proc/meminfo", "MemAvailable:");
  if (!kilobytes.has_value()) {
    return absl::InternalError(absl::StrCat(root, "/proc/meminfo has no MemAvailable"));
  }
  int64_t available = *kilobytes * 1024;
  const std::string cgroup = root + "/sys/fs/cgroup/memory.";
  const std::optional<int64_t> limit = NumberIn(cgroup + "max");
  const std::optional<int64_t> used = NumberIn(cgroup + "current");
  if (limit.has_value() && used.has_value()) {
    // Cached file pages count as used but are given up when memory is short.
    const int64_t cached = FieldOf(cgroup + "stat", "file").value_or(0);
    available = std::min(available, std::max<int64_t>(0, *limit - *used + cached));
  }
  return available;
}

}  // namespace conclave
