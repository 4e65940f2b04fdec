#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/types/span.h"
#include "common/bfloat16.h"
#include "common/thread_pool.h"

namespace conclave {

// Rows of a BF16 matrix as a checkpoint stores it: row-major [num_rows, in_features].
struct MatrixRows {
  const BFloat16* data = nullptr;
  int64_t num_rows = 0;
};

// A weight [out_features, in_features] in the layout the CPU kernels stream: panels of 16 output
// features; inside a panel, for each pair of inputs, 16 x 2 values. That is
// [ceil(out/16)][ceil(in/2)][16][2], zero-padded, 64-byte aligned. One 64-byte line is then one
// vdpbf16ps operand, and each lane sums one output over K in order: the sum of a row never depends
// on the tile or the batch it was computed in.
class PackedMatrix {
 public:
  static constexpr int kPanel = 16;

  PackedMatrix() = default;
  PackedMatrix(PackedMatrix&&) = default;
  PackedMatrix& operator=(PackedMatrix&&) = default;

  // Stacks the parts' rows (q_proj over k_proj over v_proj) and packs them, in parallel (on the
  // calling thread if `pool` is null). Sources are not needed afterwards and need no alignment.
  static PackedMatrix Pack(absl::Span<const MatrixRows> parts, int64_t in_features,
                           ThreadPool* pool);

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  int64_t num_panels() const { return (out_features_ + kPanel - 1) / kPanel; }
  int64_t num_pairs() const { return (in_features_ + 1) / 2; }
  size_t bytes() const { return static_cast<size_t>(num_panels()) * num_pairs() * 2 * kPanel * 2; }

  // First value of a panel: num_pairs() lines of 32 BF16.
  const BFloat16* Panel(int64_t panel) const {
    return data_.get() + panel * num_pairs() * 2 * kPanel;
  }

  // One weight, for the references and for tests.
  BFloat16 At(int64_t out, int64_t in) const {
    return Panel(out / kPanel)[(in / 2) * 2 * kPanel + (out % kPanel) * 2 + in % 2];
  }

 private:
  struct Unmapper {
    size_t bytes;  // no initialiser: the class is not complete where unique_ptr wants one
    void operator()(BFloat16* data) const;
  };

  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  std::unique_ptr<BFloat16[], Unmapper> data_;
};

}  // namespace conclave
