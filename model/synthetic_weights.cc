#include "model/synthetic_weights.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/bfloat16.h"
#include "common/fp8.h"
#include "model/weight_catalog.h"
#include "model/weight_reader.h"

namespace conclave {
namespace {

constexpr float kMaxE4M3 = 448;
constexpr uint64_t kGoldenGamma = 0x9e3779b97f4a7c15u;

// The output function of SplitMix64 (Steele, Lea, Flood 2014): any counter gives 64 even bits.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t KeyOf(absl::string_view name, uint64_t seed) {
  uint64_t key = Mix(seed + kGoldenGamma);
  for (const char c : name) key = Mix(key ^ static_cast<uint8_t>(c));
  return key;
}

// The E4M3 codes nearest to 256 values spread evenly over -448..448.
std::array<uint8_t, 256> MakeEvenCodes() {
  std::array<uint8_t, 256> codes{};
  for (int i = 0; i < 256; ++i) {
    const float value = (static_cast<float>(i) - 127.5f) / 127.5f * kMaxE4M3;
    float nearest = INFINITY;
    for (int code = 0; code < 256; ++code) {
      const float distance = std::abs(E4M3ToFloat(static_cast<uint8_t>(code)) - value);
      if (distance < nearest) {  // never for NaN
        nearest = distance;
        codes[i] = static_cast<uint8_t>(code);
      }
    }
  }
  return codes;
}

SyntheticTensor MakeTensor(std::string name, DType dtype, std::vector<int64_t> shape, float center,
                           float half_width) {
  return {SafetensorsEntry{std::move(name), dtype, std::move(shape), 0, 0}, center, half_width};
}

constexpr int kBlock = 512;  // elements drawn at once; a constant, so that the loops vectorise

// Elements [begin, begin + kBlock) of the stream of even 16-bit numbers; four a generator step.
void DrawBlock(uint64_t key, int64_t begin, uint16_t* numbers) {
  for (int i = 0; i < kBlock / 4; ++i) {
    const uint64_t bits = Mix(key + (static_cast<uint64_t>(begin) / 4 + i) * kGoldenGamma);
    std::memcpy(numbers + 4 * i, &bits, sizeof(bits));
  }
}

// Writes convert(value) for each element, value even within center +- half_width.
template <typename T, typename Convert>
void FillEven(const SyntheticTensor& tensor, uint64_t key, int64_t begin, int64_t count,
              uint8_t* out, Convert convert) {
  uint16_t numbers[kBlock];
  T values[kBlock];
  const float step = tensor.half_width / 32768.0f, center = tensor.center;
  for (int64_t i = 0; i < count; i += kBlock) {
    DrawBlock(key, begin + i, numbers);
    for (int k = 0; k < kBlock; ++k) {
      values[k] = convert(center + step * (static_cast<float>(numbers[k]) - 32767.5f));
    }
    const int64_t used = std::min<int64_t>(kBlock, count - i);
    std::memcpy(out + i * static_cast<int64_t>(sizeof(T)), values,
                static_cast<size_t>(used) * sizeof(T));
  }
}

void FillE4M3(uint64_t key, int64_t begin, int64_t count, uint8_t* out) {
  static const std::array<uint8_t, 256> codes = MakeEvenCodes();
  uint16_t numbers[kBlock];
  for (int64_t i = 0; i < count; i += kBlock) {
    DrawBlock(key, begin + i, numbers);
    const int64_t used = std::min<int64_t>(kBlock, count - i);
    for (int64_t k = 0; k < used; ++k) out[i + k] = codes[numbers[k] & 0xff];
  }
}

}  // namespace

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const float magnitude = std::abs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 65520) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24; nearbyint rounds ties to even
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const uint32_t rounded = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - ((127 - 15) << 10)));
}

std::vector<SyntheticTensor> SyntheticTensors(const Qwen3Config& config, DType dtype) {
  std::vector<SyntheticTensor> tensors;
  for (WeightSpec& spec : WeightCatalog(config)) {
    if (spec.shape.size() == 1) {
      tensors.push_back(MakeTensor(std::move(spec.name), dtype, spec.shape, 1.0f, 0.2f));
      continue;
    }
    // A uniform distribution of half width w has the standard deviation w / sqrt(3).
    const float half_width = std::sqrt(3.0f / static_cast<float>(spec.shape[1]));
    if (!spec.quantized || config.quantization == WeightQuantization::kNone) {
      tensors.push_back(MakeTensor(std::move(spec.name), dtype, spec.shape, 0, half_width));
      continue;
    }
    // Scales differ from block to block, as real ones do.
    const float scale = half_width / kMaxE4M3;
    const std::vector<int64_t> blocks = {(spec.shape[0] + kFp8BlockSize - 1) / kFp8BlockSize,
                                         (spec.shape[1] + kFp8BlockSize - 1) / kFp8BlockSize};
    tensors.push_back(MakeTensor(spec.name, DType::kF8E4M3, spec.shape, 0, kMaxE4M3));
    tensors.push_back(MakeTensor(absl::StrCat(spec.name, "_scale_inv"), DType::kF32, blocks, scale,
                                 0.5f * scale));
  }
  return tensors;
}

void FillSynthetic(const SyntheticTensor& tensor, uint64_t seed, int64_t begin, int64_t count,
                   uint8_t* out) {
  const uint64_t key = KeyOf(tensor.entry.name, seed);
  switch (tensor.entry.dtype) {
    case DType::kF8E4M3:
      return FillE4M3(key, begin, count, out);
    case DType::kF16:
      return FillEven<uint16_t>(tensor, key, begin, count, out, FloatToHalf);
    case DType::kF32:
      return FillEven<float>(tensor, key, begin, count, out, [](float value) { return value; });
    default:
      return FillEven<BFloat16>(tensor, key, begin, count, out, ToBFloat16);
  }
}

}  // namespace conclave
