#pragma once

#include <cstdint>
#include <memory>

// What the stand-in for cuBLASLt (cublaslt_stand_in.cc) has besides cuBLASLt's own functions.
namespace conclave::cuda::cublaslt {

// Runs `run` on `argument` in its turn on the stream, any number of times if it is recorded.
using EnqueueFunction = void (*)(void* stream, void (*run)(const void*),
                                 std::shared_ptr<const void> argument);

struct StandInCounts {
  int64_t choices = 0;  // asked for
  int64_t products = 0;
  int64_t fp8_products = 0;  // of those
};

// A matrix of so many out_features is one that it has no kernel for.
inline constexpr uint64_t kUnsupportedOutFeatures = 208;

}  // namespace conclave::cuda::cublaslt
