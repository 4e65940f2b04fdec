#include "kernels/cuda/runtime.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "kernels/cuda/emulation/emulator.h"

// Device memory is heap memory, filled with a pattern so that reading what nobody wrote shows. A
// stream runs nothing before it is waited for: code that forgets to synchronise, or changes a
// buffer while a copy from it is under way, then reads or copies the wrong bytes. One thread runs
// at a time: the emulated thread block's state is the process's own.
namespace conclave::cuda {
namespace {

using Work = std::function<void()>;

struct StreamState {
  std::deque<Work> waiting;
  std::vector<Work>* recording = nullptr;
  uint64_t num_enqueued = 0;
  uint64_t num_done = 0;
};

StreamState& StateOf(const Stream& stream) { return *static_cast<StreamState*>(stream.handle()); }

// Under Streams::mutex, as everything that changes a stream.
void RunUntil(StreamState& state, uint64_t num_done) {
  while (state.num_done < num_done) {
    const Work work = std::move(state.waiting.front());
    state.waiting.pop_front();
    work();
    ++state.num_done;
  }
}

void RunAll(StreamState& state) { RunUntil(state, state.num_enqueued); }

struct Streams {
  std::mutex mutex;
  std::set<StreamState*> all;
};
Streams& AllStreams() {
  static Streams* const streams = new Streams;
  return *streams;
}

// What the emulated device has.
constexpr int64_t kTotalBytes = int64_t{4} << 30;

void* AllocatePoisoned(size_t bytes) {
  void* data = nullptr;
  if (bytes == 0 || bytes > static_cast<size_t>(kTotalBytes) ||
      posix_memalign(&data, 256, bytes) != 0)
    return nullptr;
  return std::memset(data, emulation::kPoison, bytes);
}

std::atomic<bool> calls_fail{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set by a signal handler");

absl::Status Works(absl::string_view call) {
  if (!calls_fail.load()) return absl::OkStatus();
  return errors::DeviceFailure(
      absl::StrCat(call, " failed: cudaErrorIllegalAddress, told to by emulation::FailCalls"));
}

absl::Status EnqueueCopy(void* to, const void* from, size_t bytes, const Stream& stream) {
  if (bytes == 0) return absl::OkStatus();
  return stream.Enqueue([=] { std::memcpy(to, from, bytes); });
}

}  // namespace

void emulation::FailCalls(bool fail) { calls_fail.store(fail); }

int DeviceCount() { return 1; }

absl::StatusOr<DeviceInfo> QueryDevice(int ordinal) {
  if (ordinal != 0) {
    return absl::InvalidArgumentError(absl::StrCat("CUDA device is ", ordinal, ", want 0..0"));
  }
  DeviceInfo info;
  info.name = "emulator";
  info.compute_major = 9;
  info.num_multiprocessors = 132;
  info.total_bytes = info.free_bytes = kTotalBytes;
  return info;
}

absl::Status UseDevice(int) { return absl::OkStatus(); }

absl::StatusOr<Stream> Stream::Create(bool programmatic) {
  auto* const state = new StreamState;
  Streams& streams = AllStreams();
  const std::lock_guard<std::mutex> lock(streams.mutex);
  streams.all.insert(state);
  return Stream(state, programmatic);
}

Stream::~Stream() {
  if (handle_ == nullptr) return;
  Streams& streams = AllStreams();
  const std::lock_guard<std::mutex> lock(streams.mutex);
  RunAll(StateOf(*this));
  streams.all.erase(&StateOf(*this));
  delete &StateOf(*this);
}

absl::Status Stream::Synchronize() const {
  if (StateOf(*this).recording != nullptr) {
    return absl::InternalError("cudaStreamSynchronize failed: the stream is being recorded");
  }
  RETURN_IF_ERROR(Works("cudaStreamSynchronize"));
  const std::lock_guard<std::mutex> lock(AllStreams().mutex);
  RunAll(StateOf(*this));
  return absl::OkStatus();
}

absl::Status Stream::Enqueue(std::function<void()> work) const {
  RETURN_IF_ERROR(Works("a launch or copy"));
  emulation::Enqueue(handle_, std::move(work));
  return absl::OkStatus();
}

void emulation::Enqueue(void* stream, std::function<void()> work) {
  StreamState& state = *static_cast<StreamState*>(stream);
  const std::lock_guard<std::mutex> lock(AllStreams().mutex);
  if (state.recording != nullptr) {
    state.recording->push_back(std::move(work));
  } else {
    state.waiting.push_back(std::move(work));
    ++state.num_enqueued;
  }
}

template <MemoryKind kKind>
absl::StatusOr<Memory<kKind>> Memory<kKind>::Allocate(size_t bytes) {
  Memory memory;
  memory.data_ = AllocatePoisoned(bytes);
  if (memory.data_ == nullptr && bytes > 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat(kKind == MemoryKind::kDevice ? "device memory" : "pinned host memory", " of ",
                     bytes >> 20, " MiB wanted"));
  }
  memory.bytes_ = bytes;
  return memory;
}

template <MemoryKind kKind>
Memory<kKind>::~Memory() {
  if (data_ == nullptr) return;
  if (kKind == MemoryKind::kDevice) {
    Streams& streams = AllStreams();
    const std::lock_guard<std::mutex> lock(streams.mutex);
    for (StreamState* const state : streams.all) RunAll(*state);  // as cudaFree waits
  }
  std::free(data_);
}

template class Memory<MemoryKind::kDevice>;
template class Memory<MemoryKind::kPinned>;

absl::Status CopyToDevice(void* device, const void* host, size_t bytes, const Stream& stream) {
  return EnqueueCopy(device, host, bytes, stream);
}
absl::Status CopyToHost(void* host, const void* device, size_t bytes, const Stream& stream) {
  return EnqueueCopy(host, device, bytes, stream);
}
absl::Status CopyOnDevice(void* to, const void* from, size_t bytes, const Stream& stream) {
  return EnqueueCopy(to, from, bytes, stream);
}
absl::Status FillBytes(void* device, int byte, size_t bytes, const Stream& stream) {
  if (bytes == 0) return absl::OkStatus();
  return stream.Enqueue([=] { std::memset(device, byte, bytes); });
}

absl::StatusOr<Graph> Graph::Record(const Stream& stream,
                                    absl::FunctionRef<absl::Status()> record) {
  auto work = std::make_unique<std::vector<Work>>();
  StateOf(stream).recording = work.get();
  const absl::Status status = record();
  StateOf(stream).recording = nullptr;
  if (!status.ok()) return status;
  Graph graph;
  graph.handle_ = work.release();
  return graph;
}

Graph::~Graph() { delete static_cast<std::vector<Work>*>(handle_); }

absl::Status Graph::Launch(const Stream& stream) const {
  // Copied: a graph may be destroyed while its launch is under way.
  return stream.Enqueue([work = *static_cast<const std::vector<Work>*>(handle_)] {
    for (const Work& item : work) item();
  });
}

namespace {

// Where an event was last recorded.
struct Mark {
  StreamState* stream = nullptr;
  uint64_t num_enqueued = 0;
};

}  // namespace

absl::StatusOr<Event> Event::Create() { return Event(new Mark); }
Event::~Event() { delete static_cast<Mark*>(handle_); }
absl::Status Event::Record(const Stream& stream) const {
  RETURN_IF_ERROR(Works("cudaEventRecord"));
  const std::lock_guard<std::mutex> lock(AllStreams().mutex);
  *static_cast<Mark*>(handle_) = {&StateOf(stream), StateOf(stream).num_enqueued};
  return absl::OkStatus();
}
absl::Status Event::Synchronize() const {
  RETURN_IF_ERROR(Works("cudaEventSynchronize"));
  const Mark& mark = *static_cast<Mark*>(handle_);
  const std::lock_guard<std::mutex> lock(AllStreams().mutex);
  if (mark.stream != nullptr) RunUntil(*mark.stream, mark.num_enqueued);
  return absl::OkStatus();
}
absl::StatusOr<double> Event::MillisecondsBetween(const Event&, const Event&) { return 0.0; }

}  // namespace conclave::cuda
