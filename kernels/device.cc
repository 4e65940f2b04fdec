#include "kernels/device.h"

#include "absl/strings/str_cat.h"

namespace conclave {

CpuIsa DetectCpuIsa() {
#if defined(__x86_64__)
  // __builtin_cpu_supports asks the operating system too: it reports AVX only if the registers are
  // saved on a context switch.
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CpuIsa::kPlain;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return CpuIsa::kAvx2;
  }
  return __builtin_cpu_supports("avx512bf16") ? CpuIsa::kAvx512Bf16 : CpuIsa::kAvx512;
#else
  return CpuIsa::kPlain;
#endif
}

absl::string_view CpuIsaName(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPlain:
      return "plain";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

absl::StatusOr<CpuIsa> ParseCpuIsa(absl::string_view name) {
  const CpuIsa detected = DetectCpuIsa();
  if (name == "auto") return detected;
  for (const CpuIsa isa : {CpuIsa::kPlain, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (name != CpuIsaName(isa)) continue;
    if (isa <= detected) return isa;
    return absl::InvalidArgumentError(
        absl::StrCat("isa is \"", name, "\", this CPU runs up to \"", CpuIsaName(detected), "\""));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "isa is \"", name, "\", want \"auto\", \"plain\", \"avx2\", \"avx512\" or \"avx512_bf16\""));
}

}  // namespace conclave
