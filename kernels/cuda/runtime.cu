#include <cuda_runtime.h>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "kernels/cuda/platform.cuh"
#include "kernels/cuda/runtime.h"

namespace conclave::cuda {
namespace {

absl::Status ToStatus(cudaError_t error, absl::string_view call) {
  if (error == cudaSuccess) return absl::OkStatus();
  // What is not sticky must not be found by the next call.
  static_cast<void>(cudaGetLastError());
  return errors::DeviceFailure(
      absl::StrCat(call, " failed: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error)));
}

absl::Status NoRoom(size_t bytes, absl::string_view where) {
  static_cast<void>(cudaGetLastError());
  size_t free = 0, total = 0;
  static_cast<void>(cudaMemGetInfo(&free, &total));
  return absl::ResourceExhaustedError(absl::StrCat(where, " of ", bytes >> 20,
                                                   " MiB wanted, the device has ", free >> 20,
                                                   " of ", total >> 20, " MiB free"));
}

cudaStream_t StreamOf(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }

}  // namespace

int DeviceCount() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  static_cast<void>(cudaGetLastError());
  return 0;
}

absl::StatusOr<DeviceInfo> QueryDevice(int ordinal) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    static_cast<void>(cudaGetLastError());
    // Without any driver the runtime says that the driver is too old.
    return absl::FailedPreconditionError(
        absl::StrCat("no CUDA device: ", error == cudaSuccess ? "this machine has no GPU"
                                         : error == cudaErrorInsufficientDriver
                                             ? "no NVIDIA driver, or one too old"
                                             : cudaGetErrorString(error)));
  }
  if (ordinal < 0 || ordinal >= count) {
    return absl::InvalidArgumentError(
        absl::StrCat("CUDA device is ", ordinal, ", want 0..", count - 1));
  }
  RETURN_IF_ERROR(UseDevice(ordinal));
  cudaDeviceProp properties;
  RETURN_IF_ERROR(
      ToStatus(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties"));
  size_t free = 0, total = 0;
  RETURN_IF_ERROR(ToStatus(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"));
  DeviceInfo info;
  info.ordinal = ordinal;
  info.name = properties.name;
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.num_multiprocessors = properties.multiProcessorCount;
  info.total_bytes = static_cast<int64_t>(total);
  info.free_bytes = static_cast<int64_t>(free);
  if (info.compute_major < 8) {
    return absl::FailedPreconditionError(absl::StrCat(
        "compute capability of ", info.name, " is ", info.compute_major, ".", info.compute_minor,
        ", want at least 8.0 (Ampere): older ones do not multiply BF16"));
  }
  return info;
}

absl::Status UseDevice(int ordinal) { return ToStatus(cudaSetDevice(ordinal), "cudaSetDevice"); }

absl::StatusOr<Stream> Stream::Create(bool programmatic) {
  cudaStream_t stream = nullptr;
  RETURN_IF_ERROR(ToStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                           "cudaStreamCreateWithFlags"));
  return Stream(stream, programmatic);
}

Stream::~Stream() {
  if (handle_ != nullptr) static_cast<void>(cudaStreamDestroy(StreamOf(*this)));
}

absl::Status Stream::Synchronize() const {
  return ToStatus(cudaStreamSynchronize(StreamOf(*this)), "cudaStreamSynchronize");
}

template <MemoryKind kKind>
absl::StatusOr<Memory<kKind>> Memory<kKind>::Allocate(size_t bytes) {
  constexpr bool kOnDevice = kKind == MemoryKind::kDevice;
  Memory memory;
  if (bytes == 0) return memory;
  const cudaError_t error =
      kOnDevice ? cudaMalloc(&memory.data_, bytes) : cudaMallocHost(&memory.data_, bytes);
  if (error == cudaErrorMemoryAllocation) {
    return NoRoom(bytes, kOnDevice ? "device memory" : "pinned host memory");
  }
  RETURN_IF_ERROR(ToStatus(error, kOnDevice ? "cudaMalloc" : "cudaMallocHost"));
  memory.bytes_ = bytes;
  return memory;
}

template <MemoryKind kKind>
Memory<kKind>::~Memory() {
  if (data_ == nullptr) return;
  static_cast<void>(kKind == MemoryKind::kDevice ? cudaFree(data_) : cudaFreeHost(data_));
}

template class Memory<MemoryKind::kDevice>;
template class Memory<MemoryKind::kPinned>;

absl::Status CopyToDevice(void* device, const void* host, size_t bytes, const Stream& stream) {
  return ToStatus(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, StreamOf(stream)),
                  "cudaMemcpyAsync to the device");
}

absl::Status CopyToHost(void* host, const void* device, size_t bytes, const Stream& stream) {
  return ToStatus(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, StreamOf(stream)),
                  "cudaMemcpyAsync to the host");
}

absl::Status CopyOnDevice(void* to, const void* from, size_t bytes, const Stream& stream) {
  return ToStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, StreamOf(stream)),
                  "cudaMemcpyAsync on the device");
}

absl::Status FillBytes(void* device, int byte, size_t bytes, const Stream& stream) {
  return ToStatus(cudaMemsetAsync(device, byte, bytes, StreamOf(stream)), "cudaMemsetAsync");
}

absl::StatusOr<Graph> Graph::Record(const Stream& stream,
                                    absl::FunctionRef<absl::Status()> record) {
  RETURN_IF_ERROR(
      ToStatus(cudaStreamBeginCapture(StreamOf(stream), cudaStreamCaptureModeThreadLocal),
               "cudaStreamBeginCapture"));
  const absl::Status recorded = record();
  cudaGraph_t captured = nullptr;
  const absl::Status ended =
      ToStatus(cudaStreamEndCapture(StreamOf(stream), &captured), "cudaStreamEndCapture");
  absl::Status status = recorded;
  status.Update(ended);
  cudaGraphExec_t executable = nullptr;
  if (status.ok()) {
    status.Update(ToStatus(cudaGraphInstantiate(&executable, captured, 0), "cudaGraphInstantiate"));
  }
  if (captured != nullptr) static_cast<void>(cudaGraphDestroy(captured));
  RETURN_IF_ERROR(status);
  Graph graph;
  graph.handle_ = executable;
  return graph;
}

Graph::~Graph() {
  if (handle_ != nullptr) {
    static_cast<void>(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle_)));
  }
}

absl::Status Graph::Launch(const Stream& stream) const {
  return ToStatus(cudaGraphLaunch(static_cast<cudaGraphExec_t>(handle_), StreamOf(stream)),
                  "cudaGraphLaunch");
}

absl::StatusOr<Event> Event::Create() {
  cudaEvent_t event = nullptr;
  RETURN_IF_ERROR(ToStatus(cudaEventCreate(&event), "cudaEventCreate"));
  return Event(event);
}

Event::~Event() {
  if (handle_ != nullptr) static_cast<void>(cudaEventDestroy(static_cast<cudaEvent_t>(handle_)));
}

absl::Status Event::Record(const Stream& stream) const {
  return ToStatus(cudaEventRecord(static_cast<cudaEvent_t>(handle_), StreamOf(stream)),
                  "cudaEventRecord");
}

absl::Status Event::Synchronize() const {
  return ToStatus(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_)), "cudaEventSynchronize");
}

absl::StatusOr<double> Event::MillisecondsBetween(const Event& start, const Event& end) {
  float milliseconds = 0;
  RETURN_IF_ERROR(
      ToStatus(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(start.handle_),
                                    static_cast<cudaEvent_t>(end.handle_)),
               "cudaEventElapsedTime"));
  return double{milliseconds};
}

absl::Status AllowSharedBytes(const char* name, const void* kernel, size_t shared_bytes) {
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  if (shared_bytes <= kAlwaysAllowed) return absl::OkStatus();
  return ToStatus(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared_bytes)),
                  absl::StrCat("cudaFuncSetAttribute for ", name));
}

absl::Status LaunchStatus(const char* name, cudaError_t error) {
  return ToStatus(error, absl::StrCat("launch of ", name));
}

}  // namespace conclave::cuda
