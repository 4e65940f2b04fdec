// The kernels for x86-64 with AVX-512 F, BW, DQ and VL (compiled with their flags).
// Everything but the table is private to this file.
#include <immintrin.h>

#include "kernels/cpu/cpu_ops.h"

#define CONCLAVE_AVX2
#define CONCLAVE_AVX512

namespace conclave::cpu {
namespace {

#include "kernels/cpu/vec_avx512.inc"
// The vectors come first: the kernels are written with them.
#include "kernels/cpu/kernels.inc"

}  // namespace

const CpuOps kAvx512Ops = kOps;

}  // namespace conclave::cpu
