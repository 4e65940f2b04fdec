#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/bfloat16.h"
#include "common/thread_pool.h"
#include "model/safetensors.h"

namespace conclave {

// Side of the square block that shares one scale in an FP8 checkpoint.
inline constexpr int64_t kFp8BlockSize = 128;

// A weight as BF16, row-major [rows, cols]: a pointer into the mapped part if it is stored as
// BF16 (the checkpoint must then outlive this), otherwise a converted copy. Moves, never copies.
class MatrixSource {
 public:
  MatrixSource(const BFloat16* mapped, int64_t rows, int64_t cols)
      : data_(mapped), rows_(rows), cols_(cols) {}
  MatrixSource(std::vector<BFloat16> owned, int64_t rows, int64_t cols)
      : owned_(std::move(owned)), data_(owned_.data()), rows_(rows), cols_(cols) {}
  MatrixSource(MatrixSource&&) = default;  // a moved vector keeps its address
  MatrixSource& operator=(MatrixSource&&) = default;
  MatrixSource(const MatrixSource&) = delete;
  MatrixSource& operator=(const MatrixSource&) = delete;

  const BFloat16* data() const { return data_; }
  const BFloat16* row(int64_t row) const { return data_ + row * cols_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  bool mapped() const { return owned_.empty() && rows_ * cols_ > 0; }

  // Says that the values were used: a mapped matrix leaves this process's memory (reading it again
  // is allowed, and maps it again).
  void Release() const;

 private:
  std::vector<BFloat16> owned_;
  const BFloat16* data_;
  int64_t rows_, cols_;
};

// The matrix `name`, which must have the shape [rows, cols]. Stored as BF16, F16, F32, or F8_E4M3
// with `name`_scale_inv ([ceil(rows / 128), ceil(cols / 128)], F32, BF16 or F16). Conversion
// rounds to nearest, ties to even; an FP8 weight is value * scale in FP32, rounded once.
// The pages of the part are mapped or converted by the threads of `pool`, by the calling one if it
// is null, and those of a converted matrix released.
// DataLoss naming part, tensor, what was found and wanted: absent, another shape or dtype.
// Thread-safe.
absl::StatusOr<MatrixSource> ReadMatrix(const Checkpoint& checkpoint, absl::string_view name,
                                        int64_t rows, int64_t cols, ThreadPool* pool = nullptr);

// An FP8 matrix as it is stored: E4M3 [rows, cols] in the mapped part, and its scales
// [ceil(rows / 128), ceil(cols / 128)] as FP32. The checkpoint must outlive it.
struct Fp8Source {
  const uint8_t* data = nullptr;
  std::vector<float> scales;
  int64_t rows = 0, cols = 0;
  void Release() const;  // as MatrixSource's
};

// True if the tensor is there and its dtype is F8_E4M3.
bool IsStoredAsFp8(const Checkpoint& checkpoint, absl::string_view name);

// The FP8 matrix `name`, its pages mapped by the threads of `pool`. Errors as ReadMatrix, and
// DataLoss for one that is not stored as F8_E4M3, or a scale that is not below 2^100.
absl::StatusOr<Fp8Source> ReadFp8Matrix(const Checkpoint& checkpoint, absl::string_view name,
                                        int64_t rows, int64_t cols, ThreadPool* pool = nullptr);

// Rows [row_begin, row_end) of the same matrix into `out` [row_end - row_begin, cols], for callers
// that place weights themselves or convert a large one with several threads.
absl::Status ReadRows(const Checkpoint& checkpoint, absl::string_view name, int64_t rows,
                      int64_t cols, int64_t row_begin, int64_t row_end, BFloat16* out);

// The vector `name` of `size` elements (a norm's weight): BF16, F16 or F32. Errors as ReadMatrix.
absl::StatusOr<std::vector<BFloat16>> ReadVector(const Checkpoint& checkpoint,
                                                 absl::string_view name, int64_t size);

// OK if `name` has this shape, [size] or [rows, cols], and can be read by the functions above, FP8
// scales included; otherwise their error. Touches no data.
absl::Status CheckWeight(const Checkpoint& checkpoint, absl::string_view name,
                         const std::vector<int64_t>& shape);

// Value of an IEEE half.
float HalfToFloat(uint16_t bits);

}  // namespace conclave
