#pragma once

#include <nccl.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace conclave::cuda {

// The functions of libnccl.so.2 that are used, found at run time, so that one program runs with and
// without it.
struct NcclLibrary {
  decltype(&::ncclGetVersion) GetVersion = nullptr;
  decltype(&::ncclGetUniqueId) GetUniqueId = nullptr;
  decltype(&::ncclGetErrorString) GetErrorString = nullptr;
  decltype(&::ncclGetLastError) GetLastError = nullptr;
  decltype(&::ncclCommInitRankConfig) CommInitRankConfig = nullptr;
  decltype(&::ncclCommGetAsyncError) CommGetAsyncError = nullptr;
  decltype(&::ncclCommAbort) CommAbort = nullptr;
  decltype(&::ncclSend) Send = nullptr;
  decltype(&::ncclRecv) Recv = nullptr;
  decltype(&::ncclGroupStart) GroupStart = nullptr;
  decltype(&::ncclGroupEnd) GroupEnd = nullptr;

  // The same for the life of the process; it is never unloaded. FailedPrecondition: it is not
  // there, or older than the header this was built with, which may pass it structures that it
  // cannot read.
  static absl::StatusOr<const NcclLibrary*> Get();

  int version() const;
  // `comm` may be null. Unavailable naming the call; ncclInProgress is OK.
  absl::Status ToStatus(ncclResult_t result, absl::string_view call, ncclComm_t comm) const;
};

}  // namespace conclave::cuda
