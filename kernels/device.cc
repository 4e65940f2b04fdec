#include "kernels/device.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace conclave {
namespace {

constexpr CpuIsa kAll[] = {CpuIsa::kPlain, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16,
                           CpuIsa::kAmx};

#if defined(__x86_64__) && defined(__linux__)
bool HasAmx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  constexpr unsigned kNeeded = kAmxBf16 | kAmxTile | kAmxInt8;
  if ((edx & kNeeded) != kNeeded) return false;
  // Linux grants the 8 KiB of tile registers on request only: a thread's saved state grows.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#elif defined(__x86_64__)
bool HasAmx() { return false; }
#endif

CpuIsa Detect() {
#if defined(__x86_64__)
  // __builtin_cpu_supports asks the operating system too: it reports AVX only if the registers are
  // saved on a context switch. Every CPU with AVX2 has F16C.
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CpuIsa::kPlain;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return CpuIsa::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) {
    return CpuIsa::kAvx512;
  }
  return HasAmx() ? CpuIsa::kAmx : CpuIsa::kAvx512Bf16;
#else
  return CpuIsa::kPlain;
#endif
}

}  // namespace

CpuIsa DetectCpuIsa() {
  static const CpuIsa detected = Detect();
  return detected;
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
    case CpuIsa::kAmx:
      return "amx";
  }
  return "unknown";
}

absl::StatusOr<CpuIsa> ParseCpuIsa(absl::string_view name) {
  const CpuIsa detected = DetectCpuIsa();
  if (name == "auto") return detected;
  for (const CpuIsa isa : kAll) {
    if (name != CpuIsaName(isa)) continue;
    if (isa <= detected) return isa;
    return absl::InvalidArgumentError(
        absl::StrCat("isa is \"", name, "\", this CPU runs up to \"", CpuIsaName(detected), "\""));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "isa is \"", name,
      "\", want \"auto\", \"plain\", \"avx2\", \"avx512\", \"avx512_bf16\" or \"amx\""));
}

absl::Status CheckDeviceName(absl::string_view name) {
  absl::string_view number = name;
  int ordinal = 0;
  if (name == "cpu" || name == "cuda" ||
      (absl::ConsumePrefix(&number, "cuda:") && absl::SimpleAtoi(number, &ordinal) &&
       ordinal >= 0)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device is \"", name, "\", want \"cpu\", \"cuda\" or \"cuda:N\""));
}

}  // namespace conclave
