#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/thread_pool.h"

namespace conclave {

// Instruction sets the CPU kernels are written for, in rising order. Results are equal for every
// batch, thread count and sharding on one of them; two of them may round differently.
enum class CpuIsa { kPlain, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The highest one this CPU and operating system run. For AMX the first call asks the kernel to let
// this process use tiles, which threads started later and earlier may then do too.
CpuIsa DetectCpuIsa();

// "auto", "plain", "avx2", "avx512", "avx512_bf16", "amx". InvalidArgument for another word, or for
// one that this CPU does not run.
absl::StatusOr<CpuIsa> ParseCpuIsa(absl::string_view name);
absl::string_view CpuIsaName(CpuIsa isa);

// InvalidArgument unless --device is "cpu", "cuda" or "cuda:N". Whether it is there is not asked.
absl::Status CheckDeviceName(absl::string_view name);

// Where ops run: the chosen instruction set and the threads. Cheap to copy; `pool` is borrowed.
struct Device {
  CpuIsa isa = CpuIsa::kPlain;
  ThreadPool* pool = nullptr;
};

}  // namespace conclave
