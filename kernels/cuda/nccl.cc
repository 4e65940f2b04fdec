#include "kernels/cuda/nccl.h"

#include <cuda_runtime.h>

#include <cstring>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "kernels/cuda/nccl_library.cuh"
#include "kernels/cuda/runtime.h"

namespace conclave::cuda {
namespace {

// A pair's transfers are small and share the GPU with the model: at most so many thread blocks, of
// the 78 to 132 multiprocessors of the GPUs meant. To be measured.
constexpr int kMaxThreadBlocks = 4;

// Of each call that gives a GPU work: NCCL does not want the communicators of one GPU to be given
// it by several threads at once, and each link has its own. Not held while aborting, which may take
// long and must hold up no other link.
absl::Mutex& LaunchMutex() {
  static absl::Mutex& mutex = *new absl::Mutex;
  return mutex;
}

absl::Status CudaStatus(cudaError_t error, absl::string_view call) {
  if (error == cudaSuccess) return absl::OkStatus();
  static_cast<void>(cudaGetLastError());
  return absl::InternalError(absl::StrCat(call, " failed: ", cudaGetErrorString(error)));
}

class Buffer final : public NcclBuffer {
 public:
  Buffer(DeviceMemory device, PinnedMemory host)
      : device_(std::move(device)), host_(std::move(host)) {}

  uint8_t* host() const override { return host_.As<uint8_t>(); }
  uint8_t* device() const { return device_.As<uint8_t>(); }

 private:
  const DeviceMemory device_;
  const PinnedMemory host_;
};

class Comm final : public NcclComm {
 public:
  Comm(const NcclLibrary& nccl, Stream stream, int peer)
      : nccl_(nccl), stream_(std::move(stream)), peer_(peer) {}

  ~Comm() override {
    // Before the stream: what is under way on it may wait for the peer for ever.
    if (comm_ != nullptr) static_cast<void>(nccl_.CommAbort(comm_));
    for (cudaEvent_t event : pending_) static_cast<void>(cudaEventDestroy(event));
    for (cudaEvent_t event : idle_) static_cast<void>(cudaEventDestroy(event));
  }

  absl::Status Join(const ncclUniqueId& id, int rank) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.minCTAs = 1;
    config.maxCTAs = kMaxThreadBlocks;
    absl::MutexLock lock(&LaunchMutex());
    return nccl_.ToStatus(nccl_.CommInitRankConfig(&comm_, 2, id, rank, &config),
                          "ncclCommInitRankConfig", nullptr);
  }

  absl::StatusOr<bool> Settled() override {
    if (settled_) return true;
    ASSIGN_OR_RETURN(const bool in_progress, InProgress());
    if (in_progress) return false;
    // Only now is the transfer in the stream: what must follow it may be put behind it.
    if (received_ != nullptr) {
      RETURN_IF_ERROR(CopyToHost(received_->host(), received_->device(), received_bytes_, stream_));
      received_ = nullptr;
    }
    if (std::exchange(to_mark_, false)) RETURN_IF_ERROR(Mark());
    settled_ = true;
    return true;
  }

  absl::Status Send(const NcclBuffer& buffer, size_t bytes) override {
    const auto& mine = static_cast<const Buffer&>(buffer);
    absl::MutexLock lock(&LaunchMutex());
    RETURN_IF_ERROR(CopyToDevice(mine.device(), mine.host(), bytes, stream_));
    RETURN_IF_ERROR(
        nccl_.ToStatus(nccl_.Send(mine.device(), bytes, ncclUint8, peer_, comm_, CudaStream()),
                       "ncclSend", comm_));
    settled_ = false;
    to_mark_ = true;
    return absl::OkStatus();
  }

  absl::Status Receive(const NcclBuffer& buffer, size_t bytes) override {
    const auto& mine = static_cast<const Buffer&>(buffer);
    absl::MutexLock lock(&LaunchMutex());
    RETURN_IF_ERROR(
        nccl_.ToStatus(nccl_.Recv(mine.device(), bytes, ncclUint8, peer_, comm_, CudaStream()),
                       "ncclRecv", comm_));
    settled_ = false;
    to_mark_ = true;
    received_ = &mine;
    received_bytes_ = bytes;
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> NumDone() override {
    RETURN_IF_ERROR(InProgress().status());
    while (!pending_.empty()) {
      const cudaError_t error = cudaEventQuery(pending_.front());
      if (error == cudaErrorNotReady) break;
      RETURN_IF_ERROR(CudaStatus(error, "cudaEventQuery"));
      idle_.push_back(pending_.front());
      pending_.pop_front();
      ++num_done_;
    }
    return num_done_;
  }

 private:
  cudaStream_t CudaStream() const { return static_cast<cudaStream_t>(stream_.handle()); }

  absl::StatusOr<bool> InProgress() const {
    ncclResult_t state = ncclSuccess;
    RETURN_IF_ERROR(
        nccl_.ToStatus(nccl_.CommGetAsyncError(comm_, &state), "ncclCommGetAsyncError", comm_));
    RETURN_IF_ERROR(nccl_.ToStatus(state, "NCCL", comm_));
    return state == ncclInProgress;
  }

  absl::Status Mark() {
    if (idle_.empty()) {
      cudaEvent_t event = nullptr;
      RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                                 "cudaEventCreateWithFlags"));
      idle_.push_back(event);
    }
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(idle_.back(), CudaStream()), "cudaEventRecord"));
    pending_.push_back(idle_.back());
    idle_.pop_back();
    return absl::OkStatus();
  }

  const NcclLibrary& nccl_;
  const Stream stream_;
  const int peer_;
  ncclComm_t comm_ = nullptr;
  bool settled_ = false;
  bool to_mark_ = false;              // with an event, once it is in the stream
  const Buffer* received_ = nullptr;  // to be copied to the host then
  size_t received_bytes_ = 0;
  std::deque<cudaEvent_t> pending_;  // one a transfer
  std::vector<cudaEvent_t> idle_;
  int64_t num_done_ = 0;
};

class Api final : public NcclApi {
 public:
  Api(const NcclLibrary& nccl, int device) : nccl_(nccl), device_(device) {}

  int version() const override { return nccl_.version(); }

  absl::StatusOr<std::string> NewUniqueId() override {
    RETURN_IF_ERROR(UseDevice(device_));
    ncclUniqueId id;
    RETURN_IF_ERROR(nccl_.ToStatus(nccl_.GetUniqueId(&id), "ncclGetUniqueId", nullptr));
    return std::string(id.internal, sizeof(id.internal));
  }

  absl::StatusOr<std::unique_ptr<NcclComm>> Join(const std::string& unique_id, int rank) override {
    ncclUniqueId id;
    if (unique_id.size() != sizeof(id.internal)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a unique id has ", unique_id.size(), " bytes, want ", sizeof(id.internal)));
    }
    std::memcpy(id.internal, unique_id.data(), unique_id.size());
    RETURN_IF_ERROR(UseDevice(device_));
    ASSIGN_OR_RETURN(Stream stream, Stream::Create());
    auto comm = std::make_unique<Comm>(nccl_, std::move(stream), 1 - rank);
    RETURN_IF_ERROR(comm->Join(id, rank));
    return comm;
  }

  absl::StatusOr<std::unique_ptr<NcclBuffer>> Allocate(size_t bytes) override {
    RETURN_IF_ERROR(UseDevice(device_));
    ASSIGN_OR_RETURN(DeviceMemory device, DeviceMemory::Allocate(bytes));
    ASSIGN_OR_RETURN(PinnedMemory host, PinnedMemory::Allocate(bytes));
    return std::make_unique<Buffer>(std::move(device), std::move(host));
  }

 private:
  const NcclLibrary& nccl_;
  const int device_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<NcclApi>> OpenNccl(int device) {
  RETURN_IF_ERROR(QueryDevice(device).status());
  ASSIGN_OR_RETURN(const NcclLibrary* nccl, NcclLibrary::Get());
  return std::make_unique<Api>(*nccl, device);
}

absl::StatusOr<std::unique_ptr<NcclApi>> OpenNccl(const std::string& device) {
  if (device == "cpu") return absl::FailedPreconditionError("NCCL needs --device=cuda");
  ASSIGN_OR_RETURN(const int ordinal, ParseCudaDevice(device));
  return OpenNccl(ordinal);
}

}  // namespace conclave::cuda
