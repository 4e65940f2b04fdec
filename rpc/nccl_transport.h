#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/limits.h"
#include "common/nccl_api.h"
#include "rpc/buffer_pool.h"

namespace conclave {

// What all NCCL links of a process share: NCCL itself, the links' threads and their buffers. It
// outlives every link: aborting a communicator can take a while, so that a link that is dropped
// leaves it to its thread, which is joined here.
class NcclTransport {
 public:
  struct Options {
    size_t frame_bytes = limits::kNcclFrameBytes;
    int num_frames = limits::kNcclFrames;
    absl::Duration setup_timeout = limits::kNcclSetupTimeout;
    absl::Duration transfer_timeout = limits::kNcclTransferTimeout;
  };

  NcclTransport(std::unique_ptr<NcclApi> api, Options options)
      : api_(std::move(api)), options_(options) {}
  explicit NcclTransport(std::unique_ptr<NcclApi> api) : NcclTransport(std::move(api), Options()) {}
  ~NcclTransport();  // blocks until every thread has ended
  NcclTransport(const NcclTransport&) = delete;
  NcclTransport& operator=(const NcclTransport&) = delete;

  NcclApi& api() const { return *api_; }
  const Options& options() const { return options_; }
  BufferPool& pool() { return pool_; }

  // Runs `body` on a thread of its own.
  void Run(std::function<void()> body);

 private:
  struct LinkThread {
    std::atomic<bool> ended{false};
    std::thread thread;
  };

  const std::unique_ptr<NcclApi> api_;
  const Options options_;
  BufferPool pool_{limits::kMaxIdleTensorBytes};
  absl::Mutex mutex_;
  std::list<LinkThread> threads_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace conclave
