#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sampling.h"
#include "kernels/sampling.h"

namespace conclave {

// Carries a step's sampling parameters to the device and the ids back. Its memory grows with the
// longest lists of penalties and biases seen. Not thread-safe.
class CudaSampler {
 public:
  // False if the device cannot draw one of them. The stream must be idle: the last step's copies
  // are overwritten. Errors: those of conclave::Sample that a host can see, ResourceExhausted.
  absl::StatusOr<bool> Pack(absl::Span<const SampleArgs> args);

  // Enqueues copies and kernel for what was packed; logits on the device, [rows, vocab_size].
  absl::Status Enqueue(float* logits, int64_t vocab_size, int64_t num_ids,
                       const cuda::Stream& stream);

  // After the stream was synchronised. Errors of conclave::Sample.
  absl::Status Unpack(absl::Span<SampleResult> results) const;

 private:
  absl::Status Reserve(size_t bytes);

  std::vector<cuda::SamplerRow> rows_;
  std::vector<cuda::SamplerCount> counts_;
  std::vector<cuda::SamplerBias> biases_;
  cuda::PinnedMemory host_;  // rows, counts, biases, then ids and failures as they come back
  cuda::DeviceMemory device_;
};

}  // namespace conclave
