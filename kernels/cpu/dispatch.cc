#include "kernels/cpu/dispatch.h"

namespace conclave::cpu {

const CpuOps& OpsFor(CpuIsa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case CpuIsa::kPlain:
      return kPlainOps;
    case CpuIsa::kAvx2:
      return kAvx2Ops;
    case CpuIsa::kAvx512:
      return kAvx512Ops;
    case CpuIsa::kAvx512Bf16:
      return kAvx512Bf16Ops;
    case CpuIsa::kAmx:
      return kAmxOps;
  }
#else
  static_cast<void>(isa);
#endif
  return kPlainOps;
}

}  // namespace conclave::cpu
