#include "common/weight_dtype.h"

#include "absl/strings/str_cat.h"

namespace conclave {
namespace {

constexpr int64_t kPanel = 16;
constexpr WeightDtype kAll[] = {WeightDtype::kBf16, WeightDtype::kInt8, WeightDtype::kInt4,
                                WeightDtype::kFp8};

int64_t DivideUp(int64_t value, int64_t step) { return (value + step - 1) / step; }

}  // namespace

absl::string_view WeightDtypeName(WeightDtype dtype) {
  switch (dtype) {
    case WeightDtype::kBf16:
      return "bf16";
    case WeightDtype::kInt8:
      return "int8";
    case WeightDtype::kInt4:
      return "int4";
    case WeightDtype::kFp8:
      return "fp8";
  }
  return "unknown";
}

absl::StatusOr<WeightDtype> ParseWeightDtype(absl::string_view name) {
  for (const WeightDtype dtype : kAll) {
    if (name == WeightDtypeName(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("weight_dtype is \"", name, "\", want \"bf16\", \"int8\", \"int4\" or \"fp8\""));
}

int64_t WeightGroupSize(WeightDtype dtype) {
  switch (dtype) {
    case WeightDtype::kBf16:
      return 0;
    case WeightDtype::kInt8:
      return 256;
    case WeightDtype::kInt4:
      return 64;
    case WeightDtype::kFp8:
      return 128;
  }
  return 0;
}

size_t WeightBytes(WeightDtype dtype, int64_t out_features, int64_t in_features) {
  const int64_t outs = DivideUp(out_features, kPanel) * kPanel;
  if (dtype == WeightDtype::kBf16) {
    return static_cast<size_t>(outs * DivideUp(in_features, 2) * 2 * 2);
  }
  const int64_t group = WeightGroupSize(dtype);
  const int64_t value_bytes = dtype == WeightDtype::kInt4 ? group / 2 : group;
  return static_cast<size_t>(outs * DivideUp(in_features, group) *
                             (static_cast<int64_t>(sizeof(float)) + value_bytes));
}

}  // namespace conclave
