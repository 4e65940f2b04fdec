#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/types/span.h"
#include "common/bfloat16.h"
#include "common/thread_pool.h"
#include "common/weight_dtype.h"

namespace conclave {

// Rows of a BF16 matrix as a checkpoint stores it: row-major [num_rows, in_features].
struct MatrixRows {
  const BFloat16* data = nullptr;
  int64_t num_rows = 0;
};

// Rows of an FP8 matrix and their scales as a checkpoint stores them, row-major.
struct Fp8Rows {
  const uint8_t* data = nullptr;  // E4M3 [num_rows, in_features]
  const float* scales = nullptr;  // [ceil(num_rows / 128), ceil(in_features / 128)], below 2^100
  int64_t num_rows = 0;
};

// A weight [out_features, in_features] in the layout the CPU kernels stream: panels of 16 output
// features, 64-byte aligned, zero-padded.
//
// BF16: inside a panel, for each pair of inputs, 16 x 2 values: [ceil(out/16)][ceil(in/2)][16][2].
// One 64-byte line is then one vdpbf16ps operand and 16 lines are one AMX tile; each lane sums one
// output over K in order: the sum of a row never depends on the tile or the batch it was computed
// in.
//
// Others: inside a panel, one block for each group of inputs (see WeightGroupSize): 16 FP32 scales,
// then the group's values in lines.
//   int8  [group / 4][16][4] signed bytes: one vpdpbusd operand, or a 16th of an AMX tile, a line.
//   int4  two lines of int8 in one: the even line in the low four bits; code + 8.
//   fp8   two lines of BF16's order in one: the even line in the low bytes of its 32 words.
class PackedMatrix {
 public:
  static constexpr int kPanel = 16;
  static constexpr int kScaleBytes = kPanel * sizeof(float);  // at the start of a block

  PackedMatrix() = default;
  PackedMatrix(PackedMatrix&&) = default;
  PackedMatrix& operator=(PackedMatrix&&) = default;

  // Stacks the parts' rows (q_proj over k_proj over v_proj) and packs them, in parallel (on the
  // calling thread if `pool` is null), quantizing them to `dtype` on the way (see quantize.h).
  // Sources are not needed afterwards and need no alignment. `dtype` is not kFp8: use PackFp8.
  static PackedMatrix Pack(absl::Span<const MatrixRows> parts, int64_t in_features,
                           ThreadPool* pool, WeightDtype dtype = WeightDtype::kBf16);

  // The same for FP8, which stays FP8 with its scales. Products give the bits of the matrix of
  // ToBFloat16(value * scale).
  static PackedMatrix PackFp8(absl::Span<const Fp8Rows> parts, int64_t in_features,
                              ThreadPool* pool);

  WeightDtype dtype() const { return dtype_; }
  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  int64_t num_panels() const { return (out_features_ + kPanel - 1) / kPanel; }
  int64_t num_pairs() const { return (in_features_ + 1) / 2; }
  size_t bytes() const { return WeightBytes(dtype_, out_features_, in_features_); }

  // Of a dtype with scales.
  int64_t group_size() const { return WeightGroupSize(dtype_); }
  int64_t num_groups() const { return (in_features_ + group_size() - 1) / group_size(); }
  int64_t block_bytes() const {
    const int64_t values = group_size() * kPanel;
    return kScaleBytes + (dtype_ == WeightDtype::kInt4 ? values / 2 : values);
  }

  // First byte of a panel.
  const uint8_t* PanelBytes(int64_t panel) const { return data_.get() + panel * panel_bytes_; }
  int64_t panel_bytes() const { return panel_bytes_; }

  // kBf16: first value of a panel: num_pairs() lines of 32 BF16.
  const BFloat16* Panel(int64_t panel) const {
    return reinterpret_cast<const BFloat16*>(PanelBytes(panel));
  }

  // One weight, for the references and for tests. At: kBf16, and kFp8 as it is multiplied. Code and
  // Scale: kInt8, kInt4. Value: any, code * scale where there are codes.
  BFloat16 At(int64_t out, int64_t in) const;
  int Code(int64_t out, int64_t in) const;
  float Scale(int64_t out, int64_t group) const;
  float Value(int64_t out, int64_t in) const;

 private:
  struct Unmapper {
    size_t bytes;  // no initialiser: the class is not complete where unique_ptr wants one
    void operator()(uint8_t* data) const;
  };

  PackedMatrix(WeightDtype dtype, int64_t out_features, int64_t in_features);
  const uint8_t* Block(int64_t out, int64_t in) const {
    return PanelBytes(out / kPanel) + in / group_size() * block_bytes();
  }

  WeightDtype dtype_ = WeightDtype::kBf16;
  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  int64_t panel_bytes_ = 0;
  std::unique_ptr<uint8_t[], Unmapper> data_;
};

}  // namespace conclave
