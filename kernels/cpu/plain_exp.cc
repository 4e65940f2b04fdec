#include "kernels/cpu/plain_exp.h"

#include "common/bfloat16.h"

namespace conclave::cpu {
namespace {

#include "kernels/cpu/vec_plain.inc"
// The vectors come first.
#include "kernels/cpu/math.inc"

}  // namespace

float PlainExp(float x) { return Exp(Set1(x)).v[0][0]; }

void PlainExpRow(const float* input, int64_t size, float shift, float scale, float* output) {
  for (int64_t i = 0; i < size; i += 16) {
    const int n = size - i < 16 ? static_cast<int>(size - i) : 16;
    const F32x16 x = Mul(Sub(LoadN(input + i, n), Set1(shift)), Set1(scale));
    const F32x16 y = Exp(x);
    __builtin_memcpy(output + i, &y, n * sizeof(float));
  }
}

}  // namespace conclave::cpu
