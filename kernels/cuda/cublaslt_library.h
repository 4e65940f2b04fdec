#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/cuda/cublaslt_abi.h"

namespace conclave::cuda {

// cuBLASLt's functions, found at run time: the library has hundreds of megabytes, and only
// --deterministic=false wants it.
struct CublasLtLibrary : cublaslt::Functions {
  // libcublasLt.so.13, or .12, as the dynamic loader finds it; the same for the life of the
  // process, never unloaded. FailedPrecondition saying where it was looked for.
  static absl::StatusOr<const CublasLtLibrary*> Get();
  // The first of `names` that there is, loaded for good.
  static absl::StatusOr<const CublasLtLibrary*> Load(absl::Span<const char* const> names);

  // Internal naming the call, and an errors::IsDeviceFailure.
  absl::Status ToStatus(cublaslt::Status status, absl::string_view call) const;
};

}  // namespace conclave::cuda
