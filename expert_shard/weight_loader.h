#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/thread_pool.h"
#include "kernels/packed_matrix.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"

namespace conclave {

// What --weight_dtype asks for. "auto" keeps what the checkpoint has: FP8 blocks as FP8, all else
// as BF16. "bf16" widens FP8 blocks too; "int8" and "int4" quantize while loading. InvalidArgument:
// another word, or "fp8" for a checkpoint that is not.
absl::StatusOr<WeightDtype> ChooseWeightDtype(absl::string_view flag, const Qwen3Config& config);

// ModelInfo.fingerprint of a process that keeps the weights so: the checkpoint's own, and another
// for quantized weights, which give other tokens. Processes with equal ones may serve one request.
// FP8 gives the bits of BF16.
std::string FingerprintAs(absl::string_view checkpoint_fingerprint, WeightDtype dtype);

// One matrix [rows, the columns of all] of the checkpoint.
struct MatrixPart {
  std::string name;
  int64_t rows = 0;
};

// Reads and packs the parts, stacked in order. kFp8 keeps those that are stored as FP8; parts that
// are not all so become BF16. The mapped pages are released. Threads of `pool`, or the calling one.
// DataLoss naming part and tensor.
absl::StatusOr<PackedMatrix> LoadPacked(const Checkpoint& checkpoint,
                                        absl::Span<const MatrixPart> parts, int64_t cols,
                                        WeightDtype dtype, ThreadPool* pool);

}  // namespace conclave
