#include "kernels/linear.h"

#include <algorithm>
#include <vector>

#include "common/status_macros.h"
#include "kernels/quantize.h"
#include "kernels/swiglu.h"
#include "kernels/validate.h"

namespace conclave {
namespace {

float Bf16Product(const BFloat16* input, const PackedMatrix& weight, int64_t out) {
  float sum = 0;
  for (int64_t k = 0; k < weight.in_features(); ++k) {
    sum += ToFloat(input[k]) * ToFloat(weight.At(out, k));
  }
  return sum;
}

// An input row as the integer products see it.
struct QuantizedRow {
  std::vector<int8_t> codes;  // [in_features]
  std::vector<float> scales;  // [num_groups]
};

QuantizedRow Quantize(const BFloat16* input, const PackedMatrix& weight) {
  QuantizedRow row{std::vector<int8_t>(weight.in_features()),
                   std::vector<float>(weight.num_groups())};
  for (int64_t g = 0; g < weight.num_groups(); ++g) {
    const int64_t begin = g * weight.group_size();
    const int64_t size = std::min(weight.group_size(), weight.in_features() - begin);
    QuantizeInt8(input + begin, size, row.codes.data() + begin, &row.scales[g]);
  }
  return row;
}

float IntegerProduct(const QuantizedRow& row, const PackedMatrix& weight, int64_t out) {
  float sum = 0;
  for (int64_t g = 0; g < weight.num_groups(); ++g) {
    const int64_t begin = g * weight.group_size();
    const int64_t end = std::min(begin + weight.group_size(), weight.in_features());
    int32_t products = 0;
    for (int64_t k = begin; k < end; ++k) products += row.codes[k] * weight.Code(out, k);
    sum += static_cast<float>(products) * weight.Scale(out, g) * row.scales[g];
  }
  return sum;
}

}  // namespace

absl::Status LinearReference(const LinearArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  const PackedMatrix& weight = *args.weight;
  const bool integers =
      weight.dtype() == WeightDtype::kInt8 || weight.dtype() == WeightDtype::kInt4;
  for (int64_t r = 0; r < args.num_rows; ++r) {
    const BFloat16* const input = args.input + r * weight.in_features();
    const QuantizedRow row = integers ? Quantize(input, weight) : QuantizedRow{};
    for (int64_t o = 0; o < weight.out_features(); ++o) {
      const float sum = integers ? IntegerProduct(row, weight, o) : Bf16Product(input, weight, o);
      float& output = args.output[r * weight.out_features() + o];
      output = args.accumulate ? output + sum : sum;
    }
  }
  return absl::OkStatus();
}

absl::Status LinearSwiGluReference(const LinearSwiGluArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  std::vector<float> gate_up(args.num_rows * args.gate_up_proj->out_features());
  RETURN_IF_ERROR(LinearReference({.input = args.input,
                                   .weight = args.gate_up_proj,
                                   .output = gate_up.data(),
                                   .num_rows = args.num_rows}));
  return SwiGluReference({.gate_up = gate_up.data(),
                          .output = args.output,
                          .num_rows = args.num_rows,
                          .intermediate_size = args.gate_up_proj->out_features() / 2});
}

}  // namespace conclave
