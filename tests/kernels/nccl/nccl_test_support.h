#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "kernels/cuda/nccl_library.cuh"
#include "kernels/cuda/runtime.h"

namespace conclave::cuda {

// Ends the test, aloud, without libnccl.so.2.
#define SKIP_WITHOUT_NCCL()                                             \
  if (const auto nccl = NcclLibrary::Get(); !nccl.ok()) {               \
    GTEST_SKIP() << "NOT TESTED, no NCCL: " << nccl.status().message(); \
  }

#define SKIP_WITHOUT_GPU_AND_NCCL()                             \
  if (DeviceCount() == 0) GTEST_SKIP() << "NOT TESTED, no GPU"; \
  SKIP_WITHOUT_NCCL()

// Devices for two ranks of one process: two GPUs, or one twice where NCCL was told to allow it; -1
// twice where neither can be, with why.
inline std::pair<int, int> DevicesOfTwoRanks(std::string* why) {
  if (DeviceCount() >= 2) return {0, 1};
  constexpr int kMultiRankVersion = 23003;
  const auto nccl = NcclLibrary::Get();
  const char* const allowed = std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  if (nccl.ok() && (*nccl)->version() >= kMultiRankVersion && allowed != nullptr &&
      std::string(allowed) == "1") {
    return {0, 0};
  }
  *why =
      "one GPU takes two ranks only with NCCL_MULTI_RANK_GPU_ENABLE=1 and NCCL 2.30.3 or later, "
      "this is " +
      std::to_string(nccl.ok() ? (*nccl)->version() : 0);
  return {-1, -1};
}

}  // namespace conclave::cuda
