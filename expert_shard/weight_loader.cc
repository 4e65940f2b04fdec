#include "expert_shard/weight_loader.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "model/memory_plan.h"
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

}  // namespace

absl::StatusOr<WeightDtype> ChooseWeightDtype(absl::string_view flag, const Qwen3Config& config) {
  if (flag == "auto") return CheckpointDtype(config);
  const bool fp8 = CheckpointDtype(config) == WeightDtype::kFp8;
  const absl::StatusOr<WeightDtype> dtype = ParseWeightDtype(flag);
  if (dtype.ok() && (fp8 || *dtype != WeightDtype::kFp8)) return *dtype;
  return errors::OutOfRange(
      "weight_dtype", absl::StrCat("\"", flag, "\""),
      absl::StrCat("auto, bf16, int8, int4", fp8 ? " or fp8" : " (fp8 for an FP8 checkpoint)"));
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

}  // namespace conclave
