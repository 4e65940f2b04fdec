#include "rpc/nccl_transport.h"

namespace conclave {

NcclTransport::~NcclTransport() {
  absl::MutexLock lock(&mutex_);
  for (LinkThread& link : threads_) link.thread.join();
}

void NcclTransport::Run(std::function<void()> body) {
  absl::MutexLock lock(&mutex_);
  threads_.remove_if([](LinkThread& link) {
    if (!link.ended.load(std::memory_order_acquire)) return false;
    link.thread.join();
    return true;
  });
  LinkThread& link = threads_.emplace_back();
  link.thread = std::thread([&link, run = std::move(body)]() mutable {
    run();
    run = nullptr;  // what it holds is gone before anyone can think that the thread has ended
    link.ended.store(true, std::memory_order_release);
  });
}

}  // namespace conclave
