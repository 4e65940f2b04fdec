// The kernels for x86-64 with AVX2 and FMA (compiled with -mavx2 -mfma).
// Everything but the table is private to this file.
#include <immintrin.h>

#include "kernels/cpu/cpu_ops.h"

#define CONCLAVE_AVX2

namespace conclave::cpu {
namespace {

#include "kernels/cpu/vec_avx2.inc"
// The vectors come first: the kernels are written with them.
#include "kernels/cpu/kernels.inc"

}  // namespace

const CpuOps kAvx2Ops = kOps;

}  // namespace conclave::cpu
