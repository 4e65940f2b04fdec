#include "kernels/cuda/nccl_library.cuh"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace conclave::cuda {
namespace {

constexpr char kName[] = "libnccl.so.2";

template <typename Function>
absl::Status Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(kName, " has no ", name));
}

absl::StatusOr<const NcclLibrary*> Load() {
  void* const file = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (file == nullptr) {
    const char* const why = dlerror();
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL is not there: ", why != nullptr ? why : kName));
  }
  static NcclLibrary& library = *new NcclLibrary;
  RETURN_IF_ERROR(Find(file, "ncclGetVersion", &library.GetVersion));
  RETURN_IF_ERROR(Find(file, "ncclGetUniqueId", &library.GetUniqueId));
  RETURN_IF_ERROR(Find(file, "ncclGetErrorString", &library.GetErrorString));
  RETURN_IF_ERROR(Find(file, "ncclGetLastError", &library.GetLastError));
  RETURN_IF_ERROR(Find(file, "ncclCommInitRankConfig", &library.CommInitRankConfig));
  RETURN_IF_ERROR(Find(file, "ncclCommGetAsyncError", &library.CommGetAsyncError));
  RETURN_IF_ERROR(Find(file, "ncclCommAbort", &library.CommAbort));
  RETURN_IF_ERROR(Find(file, "ncclSend", &library.Send));
  RETURN_IF_ERROR(Find(file, "ncclRecv", &library.Recv));
  RETURN_IF_ERROR(Find(file, "ncclGroupStart", &library.GroupStart));
  RETURN_IF_ERROR(Find(file, "ncclGroupEnd", &library.GroupEnd));
  if (library.version() < NCCL_VERSION_CODE) {
    return absl::FailedPreconditionError(absl::StrCat("the version of ", kName, " is ",
                                                      library.version(), ", want at least ",
                                                      NCCL_VERSION_CODE));
  }
  return &library;
}

}  // namespace

absl::StatusOr<const NcclLibrary*> NcclLibrary::Get() {
  static const absl::StatusOr<const NcclLibrary*>& library =
      *new absl::StatusOr<const NcclLibrary*>(Load());
  return library;
}

int NcclLibrary::version() const {
  int version = 0;
  return GetVersion(&version) == ncclSuccess ? version : 0;
}

absl::Status NcclLibrary::ToStatus(ncclResult_t result, absl::string_view call,
                                   ncclComm_t comm) const {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat(call, ": ", GetErrorString(result), ", ", GetLastError(comm)));
}

}  // namespace conclave::cuda
