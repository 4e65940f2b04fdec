#pragma once

#include <cstdint>

namespace conclave::cpu {

// e^x for sampling and for the gate: the same bits on every x86-64 CPU, which the C library's, with
// its own choice of instructions, does not promise. Same method and range as Exp in math.inc.
float PlainExp(float x);

// output[i] = e^((input[i] - shift) * scale) for i < size; equal to PlainExp in each element.
void PlainExpRow(const float* input, int64_t size, float shift, float scale, float* output);

}  // namespace conclave::cpu
