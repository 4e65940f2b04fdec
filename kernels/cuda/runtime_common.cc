#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/cuda/runtime.h"

namespace conclave::cuda {

std::string DeviceInfo::ToString() const {
  return absl::StrCat("cuda:", ordinal, " ", name, ", compute capability ", compute_major, ".",
                      compute_minor, ", ", num_multiprocessors, " multiprocessors, ",
                      free_bytes >> 20, " of ", total_bytes >> 20, " MiB free");
}

absl::StatusOr<int> ParseCudaDevice(absl::string_view name) {
  int ordinal = 0;
  absl::string_view rest = name;
  if (absl::ConsumePrefix(&rest, "cuda") &&
      (rest.empty() ||
       (absl::ConsumePrefix(&rest, ":") && absl::SimpleAtoi(rest, &ordinal) && ordinal >= 0))) {
    return ordinal;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device is \"", name, "\", want \"cpu\", \"cuda\" or \"cuda:N\""));
}

}  // namespace conclave::cuda
