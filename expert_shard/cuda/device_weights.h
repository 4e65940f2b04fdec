#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/bfloat16.h"
#include "expert_shard/expert_runner.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/runtime.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"

namespace conclave {

// Some rows of a matrix, as the checkpoint names them.
struct WeightPart {
  std::string name;
  int64_t rows = 0;
};

// Where weights come from: writes them to device memory that the caller has allocated, in time
// enqueued. Errors: DataLoss (the checkpoint), Internal (CUDA).
class DeviceWeightSource {
 public:
  virtual ~DeviceWeightSource() = default;
  virtual absl::Status Bf16(const WeightPart& part, int64_t cols, BFloat16* to) = 0;
  virtual absl::Status Fp8(const WeightPart& part, int64_t cols, uint8_t* to, float* scales) = 0;
  virtual absl::Status Norm(const std::string& name, int64_t size, float* to) = 0;
  // Waits until all is there. What was written to must live until then.
  virtual absl::Status Finish() = 0;
};

// From the mapped checkpoint, which is borrowed, through two pinned buffers, one being filled while
// the other is copied. With a null checkpoint: seeded random values, filled in place; a weight's
// depend on its name alone, so that every process makes the same.
absl::StatusOr<std::unique_ptr<DeviceWeightSource>> OpenWeightSource(const Checkpoint* checkpoint);

// Allocates weights and fills them, or, without a source, only counts their bytes.
class DeviceWeightBuilder {
 public:
  // `source` may be null; both are borrowed.
  DeviceWeightBuilder(const Qwen3Config& config, DeviceWeightSource* source)
      : config_(config), source_(source) {}

  // One matrix of stacked parts for each entry of `matrices`, all of one shape. FP8 stays FP8 where
  // it may be and the blocks of 128 rows do not cross a seam between parts; all else is BF16.
  // ResourceExhausted (device memory) beside the source's errors.
  absl::Status Matrix(const std::vector<std::vector<WeightPart>>& matrices, int64_t cols,
                      bool may_be_fp8, cuda::DeviceMatrix* out);
  absl::Status Norm(const std::string& name, int64_t size, const float** out);

  // gate_proj over up_proj, and down_proj, of these experts of a layer, both in one format.
  absl::Status Experts(int layer, absl::Span<const int> expert_ids,
                       cuda::DeviceMatrix* gate_up_proj, cuda::DeviceMatrix* down_proj);

  // But for what each allocation is rounded up by.
  int64_t bytes() const { return bytes_; }
  std::vector<cuda::DeviceMemory> TakeMemory() { return std::move(memory_); }

 private:
  absl::Status Allocate(int64_t bytes, char** out);

  const Qwen3Config& config_;
  DeviceWeightSource* const source_;
  int64_t bytes_ = 0;
  std::vector<cuda::DeviceMemory> memory_;
};

}  // namespace conclave
