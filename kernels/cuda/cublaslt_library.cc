#include "kernels/cuda/cublaslt_library.h"

#include <dlfcn.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"

namespace conclave::cuda {
namespace {

constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

template <typename Function>
absl::Status Find(void* file, const char* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(file, name));
  if (*function != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(library, " has no ", name));
}

}  // namespace

absl::StatusOr<const CublasLtLibrary*> CublasLtLibrary::Get() {
  static const absl::StatusOr<const CublasLtLibrary*>& library =
      *new absl::StatusOr<const CublasLtLibrary*>(Load(kNames));
  return library;
}

absl::StatusOr<const CublasLtLibrary*> CublasLtLibrary::Load(absl::Span<const char* const> names) {
  void* file = nullptr;
  const char* found = "";
  std::string why;
  for (const char* const name : names) {
    file = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    found = name;
    if (file != nullptr) break;
    const char* const error = dlerror();
    absl::StrAppend(&why, "; ", error != nullptr ? error : name);
  }
  if (file == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "deterministic is false, which needs cuBLASLt, and it is not there: looked for in the "
        "directories of LD_LIBRARY_PATH, in those of the system (ldconfig -p) and in lib/ beside "
        "the program's bin/",
        why));
  }
  auto library = std::make_unique<CublasLtLibrary>();
  CublasLtLibrary& l = *library;
  const auto find = [&](const char* name, auto* function) {
    return Find(file, found, name, function);
  };
  RETURN_IF_ERROR(find("cublasLtGetVersion", &l.GetVersion));
  RETURN_IF_ERROR(find("cublasLtGetStatusString", &l.GetStatusString));
  RETURN_IF_ERROR(find("cublasLtCreate", &l.Create));
  RETURN_IF_ERROR(find("cublasLtDestroy", &l.Destroy));
  RETURN_IF_ERROR(find("cublasLtMatmulDescCreate", &l.MatmulDescCreate));
  RETURN_IF_ERROR(find("cublasLtMatmulDescDestroy", &l.MatmulDescDestroy));
  RETURN_IF_ERROR(find("cublasLtMatmulDescSetAttribute", &l.MatmulDescSetAttribute));
  RETURN_IF_ERROR(find("cublasLtMatrixLayoutCreate", &l.MatrixLayoutCreate));
  RETURN_IF_ERROR(find("cublasLtMatrixLayoutDestroy", &l.MatrixLayoutDestroy));
  RETURN_IF_ERROR(find("cublasLtMatmulPreferenceCreate", &l.PreferenceCreate));
  RETURN_IF_ERROR(find("cublasLtMatmulPreferenceDestroy", &l.PreferenceDestroy));
  RETURN_IF_ERROR(find("cublasLtMatmulPreferenceSetAttribute", &l.PreferenceSetAttribute));
  RETURN_IF_ERROR(find("cublasLtMatmulAlgoGetHeuristic", &l.AlgoGetHeuristic));
  RETURN_IF_ERROR(find("cublasLtMatmul", &l.Matmul));
  return library.release();
}

absl::Status CublasLtLibrary::ToStatus(cublaslt::Status status, absl::string_view call) const {
  if (status == cublaslt::kSuccess) return absl::OkStatus();
  return errors::DeviceFailure(absl::StrCat(call, " failed: ", GetStatusString(status)));
}

}  // namespace conclave::cuda
