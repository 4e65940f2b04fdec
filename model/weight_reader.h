#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/bfloat16.h"
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

 private:
  std::vector<BFloat16> owned_;
  const BFloat16* data_;
  int64_t rows_, cols_;
};

// The matrix `name`, which must have the shape [rows, cols]. Stored as BF16, F16, F32, or F8_E4M3
// with `name`_scale_inv ([ceil(rows / 128), ceil(cols / 128)], F32, BF16 or F16). Conversion
// rounds to nearest, ties to even; an FP8 weight is value * scale in FP32, rounded once.
// DataLoss naming part, tensor, what was found and wanted: absent, another shape or dtype.
// Thread-safe.
absl::StatusOr<MatrixSource> ReadMatrix(const Checkpoint& checkpoint, absl::string_view name,
                                        int64_t rows, int64_t cols);

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

// Value of an F8_E4M3 (finite, "FN") byte: 1 sign, 4 exponent (bias 7), 3 mantissa bits; 0x7f and
// 0xff are NaN, there is no infinity, the largest is 448.
float Fp8E4M3ToFloat(uint8_t bits);
// Value of an IEEE half.
float HalfToFloat(uint16_t bits);

}  // namespace conclave
