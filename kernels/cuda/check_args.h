#pragma once

#include <cstdint>
#include <initializer_list>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/errors.h"

// What wrappers check before they launch; what lies in device memory they cannot look at.
namespace conclave::cuda {

// InvalidArgument naming the first that is null.
inline absl::Status CheckNotNull(
    std::initializer_list<std::pair<absl::string_view, const void*>> pointers) {
  for (const auto& [name, pointer] : pointers) {
    if (pointer == nullptr) return absl::InvalidArgumentError(absl::StrCat(name, " is null"));
  }
  return absl::OkStatus();
}

inline absl::Status CheckRange(absl::string_view what, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return errors::OutOfRange(what, value, absl::StrCat(low, "..", high));
}

inline absl::Status CheckMultiple(absl::string_view what, int64_t value, int64_t of) {
  if (value > 0 && value % of == 0) return absl::OkStatus();
  return errors::OutOfRange(what, value, absl::StrCat("a multiple of ", of));
}

// Rows of one call: grids are counted in 32 bits.
inline constexpr int64_t kMaxRows = int64_t{1} << 20;

}  // namespace conclave::cuda
