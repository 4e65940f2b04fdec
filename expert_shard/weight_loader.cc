#include "expert_shard/weight_loader.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "model/weight_catalog.h"
#include "model/weight_reader.h"

namespace conclave {
namespace {

absl::StatusOr<PackedMatrix> LoadFp8(const Checkpoint& checkpoint,
                                     absl::Span<const MatrixPart> parts, int64_t cols,
                                     ThreadPool* pool) {
  std::vector<Fp8Source> sources;
  std::vector<Fp8Rows> rows;
  for (const MatrixPart& part : parts) {
    ASSIGN_OR_RETURN(Fp8Source source, ReadFp8Matrix(checkpoint, part.name, part.rows, cols, pool));
    sources.push_back(std::move(source));
  }
  for (const Fp8Source& source : sources) {
    rows.push_back({source.data, source.scales.data(), source.rows});
  }
  PackedMatrix packed = PackedMatrix::PackFp8(rows, cols, pool);
  for (const Fp8Source& source : sources) source.Release();
  return packed;
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

}  // namespace

absl::StatusOr<WeightDtype> ChooseWeightDtype(absl::string_view flag, const Qwen3Config& config) {
  const bool fp8 = config.quantization == WeightQuantization::kFp8Block128;
  if (flag == "auto") return fp8 ? WeightDtype::kFp8 : WeightDtype::kBf16;
  const absl::StatusOr<WeightDtype> dtype = ParseWeightDtype(flag);
  if (dtype.ok() && (fp8 || *dtype != WeightDtype::kFp8)) return *dtype;
  return errors::OutOfRange(
      "weight_dtype", absl::StrCat("\"", flag, "\""),
      absl::StrCat("auto, bf16, int8, int4", fp8 ? " or fp8" : " (fp8 for an FP8 checkpoint)"));
}

WeightDtype LmHeadDtype(WeightDtype dtype) {
  return dtype == WeightDtype::kInt4 ? WeightDtype::kInt8 : dtype;
}

std::string FingerprintAs(absl::string_view checkpoint_fingerprint, WeightDtype dtype) {
  if (dtype == WeightDtype::kBf16 || dtype == WeightDtype::kFp8) {
    return std::string(checkpoint_fingerprint);
  }
  return absl::StrCat(checkpoint_fingerprint, "-", WeightDtypeName(dtype));
}

absl::StatusOr<PackedMatrix> LoadPacked(const Checkpoint& checkpoint,
                                        absl::Span<const MatrixPart> parts, int64_t cols,
                                        WeightDtype dtype, ThreadPool* pool) {
  if (dtype == WeightDtype::kFp8) {
    const bool stored_so = std::all_of(parts.begin(), parts.end(), [&](const MatrixPart& part) {
      return IsStoredAsFp8(checkpoint, part.name);
    });
    if (stored_so) return LoadFp8(checkpoint, parts, cols, pool);
    dtype = WeightDtype::kBf16;
  }
  std::vector<MatrixSource> sources;
  std::vector<MatrixRows> rows;
  for (const MatrixPart& part : parts) {
    ASSIGN_OR_RETURN(MatrixSource source, ReadMatrix(checkpoint, part.name, part.rows, cols, pool));
    rows.push_back({source.data(), source.rows()});
    sources.push_back(std::move(source));
  }
  PackedMatrix packed = PackedMatrix::Pack(rows, cols, pool, dtype);
  for (const MatrixSource& source : sources) source.Release();
  return packed;
}

int64_t PackedWorkerBytes(const Qwen3Config& config, WeightDtype dtype) {
  int64_t bytes = 0;
  for (const WeightSpec& spec : WeightCatalog(config)) {
    if (spec.owner != WeightOwner::kWorker) continue;
    const bool lm_head = spec.name == kLmHeadName;
    bytes += PackedBytes(spec, lm_head ? LmHeadDtype(dtype) : dtype);
  }
  if (config.tie_word_embeddings) {  // packed once more for the logits
    const WeightDtype head = dtype == WeightDtype::kFp8 ? WeightDtype::kBf16 : LmHeadDtype(dtype);
    bytes += static_cast<int64_t>(WeightBytes(head, config.vocab_size, config.hidden_size));
  }
  return bytes;
}

int64_t PackedExpertBytes(const Qwen3Config& config, int num_experts, WeightDtype dtype) {
  const int64_t width = config.moe_intermediate_size, hidden = config.hidden_size;
  const size_t one = WeightBytes(dtype, 2 * width, hidden) + WeightBytes(dtype, hidden, width);
  return int64_t{config.NumSparseLayers()} * num_experts * static_cast<int64_t>(one);
}

}  // namespace conclave
