#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

#if defined(CONCLAVE_CUDA_EMULATION)
#include <functional>
#endif

// The little of the CUDA runtime that the rest of Conclave needs, without its header. runtime.cu is
// a device's; emulation/runtime.cc stands in for it in tests.
//
// A CUDA call that fails is Internal and names the call, except where stated, and an
// errors::IsDeviceFailure: the device may be in any state then, and the process turns unhealthy and
// exits.
namespace conclave::cuda {

struct DeviceInfo {
  int ordinal = 0;
  std::string name;
  int compute_major = 0, compute_minor = 0;
  int num_multiprocessors = 0;
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;  // now, of all processes
  std::string ToString() const;
};

// 0 without a GPU or a driver.
int DeviceCount();

// Errors: FailedPrecondition (no GPU or driver; compute capability below 8.0), InvalidArgument (no
// such ordinal).
absl::StatusOr<DeviceInfo> QueryDevice(int ordinal);

// "cuda" or "cuda:N" to N, anything else InvalidArgument.
absl::StatusOr<int> ParseCudaDevice(absl::string_view name);

// Every call from this thread goes to that device from now on.
absl::Status UseDevice(int ordinal);

// Work that runs in order. Owned; not thread-safe.
class Stream {
 public:
  // `programmatic`: a kernel is launched while the one before it still runs, and waits for it
  // inside (AwaitPrevious), so that the gap between the two is hidden. Needs compute
  // capability 9.0.
  static absl::StatusOr<Stream> Create(bool programmatic = false);
  Stream(Stream&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), programmatic_(other.programmatic_) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(programmatic_, other.programmatic_);
    return *this;
  }
  ~Stream();

  // Blocks until everything enqueued is done. Internal also for an earlier kernel's failure.
  absl::Status Synchronize() const;

  void* handle() const { return handle_; }  // a cudaStream_t
  bool programmatic() const { return programmatic_; }
#if defined(CONCLAVE_CUDA_EMULATION)
  absl::Status Enqueue(std::function<void()> work) const;
#endif

 private:
  Stream(void* handle, bool programmatic) : handle_(handle), programmatic_(programmatic) {}
  void* handle_ = nullptr;
  bool programmatic_ = false;
};

enum class MemoryKind {
  kDevice,  // 256-byte aligned; freeing waits for the device
  kPinned,  // of the host: the device copies from and to it at full speed
};

// Owned bytes, not initialised.
template <MemoryKind kKind>
class Memory {
 public:
  Memory() = default;
  // ResourceExhausted saying how much was asked for and how much is free.
  static absl::StatusOr<Memory> Allocate(size_t bytes);
  Memory(Memory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory();

  template <typename T>
  T* As(size_t byte_offset = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + byte_offset);
  }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};
using DeviceMemory = Memory<MemoryKind::kDevice>;
using PinnedMemory = Memory<MemoryKind::kPinned>;

// Asynchronous if the host side is pinned; it must stay untouched until the stream is synchronised.
absl::Status CopyToDevice(void* device, const void* host, size_t bytes, const Stream& stream);
absl::Status CopyToHost(void* host, const void* device, size_t bytes, const Stream& stream);
absl::Status CopyOnDevice(void* to, const void* from, size_t bytes, const Stream& stream);
absl::Status FillBytes(void* device, int byte, size_t bytes, const Stream& stream);

// Kernels and copies, recorded once and launched as one. Arguments are those of the recording.
class Graph {
 public:
  Graph() = default;
  // Runs `record`, which enqueues on `stream` and must not synchronise; nothing is executed yet.
  static absl::StatusOr<Graph> Record(const Stream& stream,
                                      absl::FunctionRef<absl::Status()> record);
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Graph();

  absl::Status Launch(const Stream& stream) const;
  bool recorded() const { return handle_ != nullptr; }

 private:
  void* handle_ = nullptr;  // a cudaGraphExec_t
};

// Marks a place in a stream, to wait for and for timing. The stream must outlive what waits.
class Event {
 public:
  static absl::StatusOr<Event> Create();
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Event();
  absl::Status Record(const Stream& stream) const;
  // Blocks until what the stream had before the mark is done; what came after may still run.
  absl::Status Synchronize() const;
  // Both recorded and synchronised with.
  static absl::StatusOr<double> MillisecondsBetween(const Event& start, const Event& end);

 private:
  explicit Event(void* handle) : handle_(handle) {}
  void* handle_ = nullptr;
};

}  // namespace conclave::cuda
