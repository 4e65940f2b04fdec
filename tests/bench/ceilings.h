#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "kernels/device.h"

namespace conclave {

// What this machine gives at most with the device's threads and instruction set, measured now.
class Ceilings {
 public:
  // buffer_bytes: read in full by each measurement; several times the last-level cache.
  // clock: seconds that pass.
  Ceilings(const Device& device, size_t buffer_bytes, double (*clock)());

  double ReadBytesPerSecond();  // one pass of additions over the buffer
  double Fp32FlopsPerSecond();  // multiply-adds on registers
  double Bf16FlopsPerSecond();  // BF16 on registers or tiles; FP32's where there is no instruction
  double Int8OpsPerSecond();    // bytes to 32-bit sums, likewise; AVX2's without AVX-512 VNNI

 private:
  double FlopsPerSecond(double (*burn)(int64_t rounds), double flops_per_round);

  Device device_;
  double (*clock_)();
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  int64_t size_;  // floats of buffer_
  std::unique_ptr<float[], Free> buffer_;
};

}  // namespace conclave
