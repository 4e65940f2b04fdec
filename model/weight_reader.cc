#include "model/weight_reader.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/errors.h"
#include "common/fp8.h"
#include "common/status_macros.h"
#include "model/page_hints.h"

namespace conclave {
namespace {

constexpr char kScaleSuffix[] = "_scale_inv";

int64_t BlocksOf(int64_t size) { return (size + kFp8BlockSize - 1) / kFp8BlockSize; }

bool IsFloat(DType dtype) {
  return dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF32;
}

// Elements of a mapped tensor need not be aligned, so all but BF16's fast path go through memcpy.
template <typename T>
T Load(const uint8_t* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Element of a tensor whose dtype IsFloat.
float LoadFloat(const TensorView& tensor, int64_t index) {
  switch (tensor.dtype) {
    case DType::kF32:
      return Load<float>(tensor.data, index);
    case DType::kF16:
      return HalfToFloat(Load<uint16_t>(tensor.data, index));
    default:
      return ToFloat(BFloat16{Load<uint16_t>(tensor.data, index)});
  }
}

void ConvertFloats(const TensorView& tensor, int64_t begin, int64_t count, BFloat16* out) {
  switch (tensor.dtype) {
    case DType::kBF16:
      std::memcpy(out, tensor.data + begin * 2, static_cast<size_t>(count) * 2);
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = ToBFloat16(HalfToFloat(Load<uint16_t>(tensor.data, begin + i)));
      }
      return;
    default:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = ToBFloat16(Load<float>(tensor.data, begin + i));
      }
  }
}

const std::array<float, 256>& Fp8Table() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> values;
    for (int bits = 0; bits < 256; ++bits) values[bits] = E4M3ToFloat(static_cast<uint8_t>(bits));
    return values;
  }();
  return table;
}

void DequantizeRow(const TensorView& tensor, const TensorView& scales, int64_t row, int64_t cols,
                   BFloat16* out) {
  const std::array<float, 256>& table = Fp8Table();
  const uint8_t* bytes = tensor.data + row * cols;
  const int64_t first_scale = row / kFp8BlockSize * BlocksOf(cols);
  for (int64_t begin = 0; begin < cols; begin += kFp8BlockSize) {
    const float scale = LoadFloat(scales, first_scale + begin / kFp8BlockSize);
    const int64_t end = std::min(begin + kFp8BlockSize, cols);
    for (int64_t col = begin; col < end; ++col) out[col] = ToBFloat16(table[bytes[col]] * scale);
  }
}

// Calls fn(begin, end) on ranges of rows of about 4 MiB: enough to keep the kernel busy for a
// millisecond, few enough for many threads.
void ForRows(ThreadPool* pool, int64_t rows, size_t bytes,
             absl::FunctionRef<void(int64_t begin, int64_t end)> fn) {
  constexpr size_t kRangeBytes = 4 << 20;
  if (pool == nullptr || bytes <= kRangeBytes) return fn(0, rows);
  const int64_t ranges = static_cast<int64_t>((bytes + kRangeBytes - 1) / kRangeBytes);
  pool->ParallelFor(rows, std::max<int64_t>(1, rows / ranges), fn);
}

// Maps a tensor's pages before they are read.
void Populate(const TensorView& tensor, int64_t rows, ThreadPool* pool) {
  const size_t row_bytes = tensor.bytes / static_cast<size_t>(std::max<int64_t>(1, rows));
  ForRows(pool, rows, tensor.bytes, [&](int64_t begin, int64_t end) {
    PopulatePages(tensor.data + begin * row_bytes, (end - begin) * row_bytes);
  });
}

absl::Status Wrong(const Checkpoint& checkpoint, const TensorView& tensor,
                   const std::vector<int64_t>& shape, absl::string_view dtypes) {
  return errors::BadCheckpoint(
      checkpoint.PartOf(tensor.name), tensor.name,
      absl::StrCat(DTypeName(tensor.dtype), " ", ShapeString(tensor.shape)),
      absl::StrCat(dtypes, " ", ShapeString(shape)));
}

absl::StatusOr<TensorView> FindScales(const Checkpoint& checkpoint, absl::string_view name,
                                      int64_t rows, int64_t cols) {
  const std::vector<int64_t> shape = {BlocksOf(rows), BlocksOf(cols)};
  ASSIGN_OR_RETURN(TensorView scales, checkpoint.Find(absl::StrCat(name, kScaleSuffix)));
  if (!IsFloat(scales.dtype) || scales.shape != shape) {
    return Wrong(checkpoint, scales, shape, "F32, BF16 or F16");
  }
  return scales;
}

absl::StatusOr<TensorView> FindWeight(const Checkpoint& checkpoint, absl::string_view name,
                                      const std::vector<int64_t>& shape) {
  ASSIGN_OR_RETURN(TensorView tensor, checkpoint.Find(name));
  const bool matrix = shape.size() == 2;
  const bool served = IsFloat(tensor.dtype) || (matrix && tensor.dtype == DType::kF8E4M3);
  if (!served || tensor.shape != shape) {
    return Wrong(checkpoint, tensor, shape,
                 matrix ? "BF16, F16, F32 or F8_E4M3" : "BF16, F16 or F32");
  }
  return tensor;
}

}  // namespace

float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 0x1f;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) / 16777216;  // mantissa / 1024 * 2^-14
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | (exponent + 127 - 15) << 23 | mantissa << 13);
}

absl::Status CheckWeight(const Checkpoint& checkpoint, absl::string_view name,
                         const std::vector<int64_t>& shape) {
  ASSIGN_OR_RETURN(const TensorView tensor, FindWeight(checkpoint, name, shape));
  if (tensor.dtype != DType::kF8E4M3) return absl::OkStatus();
  return FindScales(checkpoint, name, shape[0], shape[1]).status();
}

absl::Status ReadRows(const Checkpoint& checkpoint, absl::string_view name, int64_t rows,
                      int64_t cols, int64_t row_begin, int64_t row_end, BFloat16* out) {
  CHECK(0 <= row_begin && row_begin <= row_end && row_end <= rows)
      << name << " rows [" << row_begin << ", " << row_end << ") of " << rows;
  ASSIGN_OR_RETURN(const TensorView tensor, FindWeight(checkpoint, name, {rows, cols}));
  if (tensor.dtype != DType::kF8E4M3) {
    ConvertFloats(tensor, row_begin * cols, (row_end - row_begin) * cols, out);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const TensorView scales, FindScales(checkpoint, name, rows, cols));
  for (int64_t row = row_begin; row < row_end; ++row) {
    DequantizeRow(tensor, scales, row, cols, out + (row - row_begin) * cols);
  }
  return absl::OkStatus();
}

absl::StatusOr<MatrixSource> ReadMatrix(const Checkpoint& checkpoint, absl::string_view name,
                                        int64_t rows, int64_t cols, ThreadPool* pool) {
  ASSIGN_OR_RETURN(const TensorView tensor, FindWeight(checkpoint, name, {rows, cols}));
  Populate(tensor, rows, pool);
  if (tensor.dtype == DType::kBF16 &&
      reinterpret_cast<uintptr_t>(tensor.data) % alignof(BFloat16) == 0) {
    return MatrixSource(reinterpret_cast<const BFloat16*>(tensor.data), rows, cols);
  }
  // Whatever can be wrong with the weight is found here; reading its rows cannot fail then.
  RETURN_IF_ERROR(CheckWeight(checkpoint, name, {rows, cols}));
  std::vector<BFloat16> owned(static_cast<size_t>(rows * cols));
  ForRows(pool, rows, tensor.bytes, [&](int64_t begin, int64_t end) {
    const absl::Status read =
        ReadRows(checkpoint, name, rows, cols, begin, end, owned.data() + begin * cols);
    CHECK(read.ok()) << read.ToString();
  });
  ReleasePages(tensor.data, tensor.bytes);
  return MatrixSource(std::move(owned), rows, cols);
}

bool IsStoredAsFp8(const Checkpoint& checkpoint, absl::string_view name) {
  const absl::StatusOr<TensorView> tensor = checkpoint.Find(name);
  return tensor.ok() && tensor->dtype == DType::kF8E4M3;
}

absl::StatusOr<Fp8Source> ReadFp8Matrix(const Checkpoint& checkpoint, absl::string_view name,
                                        int64_t rows, int64_t cols, ThreadPool* pool) {
  ASSIGN_OR_RETURN(const TensorView tensor, FindWeight(checkpoint, name, {rows, cols}));
  if (tensor.dtype != DType::kF8E4M3) return Wrong(checkpoint, tensor, {rows, cols}, "F8_E4M3");
  ASSIGN_OR_RETURN(const TensorView scales, FindScales(checkpoint, name, rows, cols));
  Populate(tensor, rows, pool);
  Fp8Source source;
  source.data = tensor.data;
  source.rows = rows;
  source.cols = cols;
  source.scales.resize(BlocksOf(rows) * BlocksOf(cols));
  for (size_t i = 0; i < source.scales.size(); ++i) {
    source.scales[i] = LoadFloat(scales, static_cast<int64_t>(i));
    if (std::fabs(source.scales[i]) < 0x1p100f) continue;
    return errors::BadCheckpoint(checkpoint.PartOf(name), scales.name,
                                 absl::StrCat("scale ", source.scales[i]), "below 2^100");
  }
  return source;
}

void Fp8Source::Release() const { ReleasePages(data, static_cast<size_t>(rows * cols)); }

void MatrixSource::Release() const {
  if (mapped()) ReleasePages(data_, static_cast<size_t>(rows_ * cols_) * sizeof(BFloat16));
}

absl::StatusOr<std::vector<BFloat16>> ReadVector(const Checkpoint& checkpoint,
                                                 absl::string_view name, int64_t size) {
  ASSIGN_OR_RETURN(const TensorView tensor, FindWeight(checkpoint, name, {size}));
  std::vector<BFloat16> values(static_cast<size_t>(size));
  ConvertFloats(tensor, 0, size, values.data());
  return values;
}

}  // namespace conclave
