#include "rpc/shutdown_signals.h"

#include <pthread.h>
#include <unistd.h>

#include "common/log.h"

namespace conclave {

ShutdownSignals::ShutdownSignals() {
  signal(SIGPIPE, SIG_IGN);
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGTERM);
  sigaddset(&signals_, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals_, &previous_mask_);
  thread_ = std::thread([this] { ThreadMain(); });
}

ShutdownSignals::~ShutdownSignals() {
  stopping_.store(true);
  pthread_kill(thread_.native_handle(), SIGTERM);  // wakes sigwait
  thread_.join();
  pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
}

void ShutdownSignals::ThreadMain() {
  while (true) {
    int number = 0;
    if (sigwait(&signals_, &number) != 0 || stopping_.load()) return;
    {
      absl::MutexLock lock(&mutex_);
      if (!requested_.HasBeenNotified()) {
        LOG_INFO("signal {}: shutting down", number);
        requested_.Notify();
        continue;
      }
    }
    LOG_WARNING("signal {} while shutting down: exiting without finishing", number);
    _exit(1);
  }
}

void ShutdownSignals::Fail(const absl::Status& failure) {
  absl::MutexLock lock(&mutex_);
  if (requested_.HasBeenNotified()) return;
  failure_ = failure;
  requested_.Notify();
}

absl::Status ShutdownSignals::failure() {
  absl::MutexLock lock(&mutex_);
  return failure_;
}

}  // namespace conclave
