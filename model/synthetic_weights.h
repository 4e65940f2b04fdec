#pragma once

#include <cstdint>
#include <vector>

#include "model/qwen3_config.h"
#include "model/safetensors.h"
#include "model/safetensors_header.h"

namespace conclave {

// One tensor of a synthetic checkpoint: element i is drawn evenly from center +- half_width, by a
// generator keyed by (seed, name, i).
struct SyntheticTensor {
  SafetensorsEntry entry;
  float center = 0;
  float half_width = 1;
};

// The tensors that `config` implies, unquantized ones as `dtype`, in the catalog's order; a scale
// follows its FP8 weight.
std::vector<SyntheticTensor> SyntheticTensors(const Qwen3Config& config, DType dtype);

// Elements [begin, begin + count) of the tensor into `out`, in its dtype (BF16, F16, F32 or
// F8_E4M3). begin is a multiple of 4. Which ranges a tensor is cut into changes nothing.
void FillSynthetic(const SyntheticTensor& tensor, uint64_t seed, int64_t begin, int64_t count,
                   uint8_t* out);

// IEEE half nearest to the value, ties to even; infinity past 65,504.
uint16_t FloatToHalf(float value);

}  // namespace conclave
