// The kernels for any CPU.
// Everything but the table is private to this file.
#include "kernels/cpu/cpu_ops.h"

namespace conclave::cpu {
namespace {

#include "kernels/cpu/vec_plain.inc"
// The vectors come first: the kernels are written with them.
#include "kernels/cpu/kernels.inc"

}  // namespace

const CpuOps kPlainOps = kOps;

}  // namespace conclave::cpu
