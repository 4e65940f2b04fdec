#pragma once

#include <cstdint>

#include "common/bfloat16.h"

// Symmetric quantization of a group of values that share a scale: value = code * scale.
namespace conclave {

// Codes -127 .. 127, to the nearest, ties to even; scale = largest magnitude / 127. A group of
// zeros has scale 0. One with an infinity or a NaN has codes 0 and scale NaN, so that what is
// computed from it is NaN, on every instruction set. In FP32: code = round(value * (127 /
// largest)).
void QuantizeInt8(const BFloat16* values, int64_t size, int8_t* codes, float* scale);

// Codes -8 .. 7; the scale of those tried that leaves the least squared error. The same rules for
// zeros and for what is not finite.
void QuantizeInt4(const BFloat16* values, int64_t size, int8_t* codes, float* scale);

}  // namespace conclave
