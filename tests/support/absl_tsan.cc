// ThreadSanitizer builds only. The distribution's Abseil is a shared library without
// instrumentation: what its mutexes order would look like races, in our code and in gRPC's. These
// definitions take precedence over the library's for the whole process, gRPC included; each calls
// the library's own and tells the sanitizer what it ordered.

#include <dlfcn.h>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

#define ABSL_TSAN_REAL(name, type, symbol) \
  static const auto name = reinterpret_cast<type>(dlsym(RTLD_NEXT, symbol))

namespace {

// The library evaluates conditions, which read what the mutex guards, where it does hold the mutex
// but the sanitizer does not know.
class WhileInside {
 public:
  WhileInside() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~WhileInside() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

class WhileWaiting {
 public:
  explicit WhileWaiting(void* mutex) : mutex_(mutex) {
    __tsan_release(mutex_);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  }
  ~WhileWaiting() {
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    __tsan_acquire(mutex_);
  }

 private:
  void* const mutex_;
};

}  // namespace

#define LOCK "_ZN4absl7debian35Mutex4LockEv"
#define UNLOCK "_ZN4absl7debian35Mutex6UnlockEv"
#define TRY_LOCK "_ZN4absl7debian35Mutex7TryLockEv"
#define READER_LOCK "_ZN4absl7debian35Mutex10ReaderLockEv"
#define READER_UNLOCK "_ZN4absl7debian35Mutex12ReaderUnlockEv"
#define AWAIT "_ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE"
#define AWAIT_TIMEOUT "_ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE"
#define AWAIT_DEADLINE "_ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE"
#define CONDVAR_WAIT "_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE"
#define CONDVAR_TIMEOUT "_ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE"
#define CONDVAR_DEADLINE "_ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE"
#define NOTIFY "_ZN4absl7debian312Notification6NotifyEv"
#define WAIT "_ZNK4absl7debian312Notification19WaitForNotificationEv"
#define WAIT_TIMEOUT \
  "_ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE"

void TsanLock(absl::Mutex* mutex) asm(LOCK);
void TsanLock(absl::Mutex* mutex) {
  ABSL_TSAN_REAL(real, decltype(&TsanLock), LOCK);
  real(mutex);
  __tsan_acquire(mutex);
}

void TsanUnlock(absl::Mutex* mutex) asm(UNLOCK);
void TsanUnlock(absl::Mutex* mutex) {
  ABSL_TSAN_REAL(real, decltype(&TsanUnlock), UNLOCK);
  __tsan_release(mutex);
  const WhileInside inside;  // it evaluates the conditions of those who wait
  real(mutex);
}

bool TsanTryLock(absl::Mutex* mutex) asm(TRY_LOCK);
bool TsanTryLock(absl::Mutex* mutex) {
  ABSL_TSAN_REAL(real, decltype(&TsanTryLock), TRY_LOCK);
  if (!real(mutex)) return false;
  __tsan_acquire(mutex);
  return true;
}

void TsanReaderLock(absl::Mutex* mutex) asm(READER_LOCK);
void TsanReaderLock(absl::Mutex* mutex) {
  ABSL_TSAN_REAL(real, decltype(&TsanReaderLock), READER_LOCK);
  real(mutex);
  __tsan_acquire(mutex);
}

void TsanReaderUnlock(absl::Mutex* mutex) asm(READER_UNLOCK);
void TsanReaderUnlock(absl::Mutex* mutex) {
  ABSL_TSAN_REAL(real, decltype(&TsanReaderUnlock), READER_UNLOCK);
  __tsan_release(mutex);
  const WhileInside inside;  // it evaluates the conditions of those who wait
  real(mutex);
}

void TsanAwait(absl::Mutex* mutex, const absl::Condition& condition) asm(AWAIT);
void TsanAwait(absl::Mutex* mutex, const absl::Condition& condition) {
  ABSL_TSAN_REAL(real, decltype(&TsanAwait), AWAIT);
  const WhileWaiting waiting(mutex);
  real(mutex, condition);
}

bool TsanAwaitWithTimeout(absl::Mutex* mutex, const absl::Condition& condition,
                          absl::Duration timeout) asm(AWAIT_TIMEOUT);
bool TsanAwaitWithTimeout(absl::Mutex* mutex, const absl::Condition& condition,
                          absl::Duration timeout) {
  ABSL_TSAN_REAL(real, decltype(&TsanAwaitWithTimeout), AWAIT_TIMEOUT);
  const WhileWaiting waiting(mutex);
  return real(mutex, condition, timeout);
}

bool TsanAwaitWithDeadline(absl::Mutex* mutex, const absl::Condition& condition,
                           absl::Time deadline) asm(AWAIT_DEADLINE);
bool TsanAwaitWithDeadline(absl::Mutex* mutex, const absl::Condition& condition,
                           absl::Time deadline) {
  ABSL_TSAN_REAL(real, decltype(&TsanAwaitWithDeadline), AWAIT_DEADLINE);
  const WhileWaiting waiting(mutex);
  return real(mutex, condition, deadline);
}

void TsanCondVarWait(absl::CondVar* condvar, absl::Mutex* mutex) asm(CONDVAR_WAIT);
void TsanCondVarWait(absl::CondVar* condvar, absl::Mutex* mutex) {
  ABSL_TSAN_REAL(real, decltype(&TsanCondVarWait), CONDVAR_WAIT);
  const WhileWaiting waiting(mutex);
  real(condvar, mutex);
}

bool TsanCondVarWaitWithTimeout(absl::CondVar* condvar, absl::Mutex* mutex,
                                absl::Duration timeout) asm(CONDVAR_TIMEOUT);
bool TsanCondVarWaitWithTimeout(absl::CondVar* condvar, absl::Mutex* mutex,
                                absl::Duration timeout) {
  ABSL_TSAN_REAL(real, decltype(&TsanCondVarWaitWithTimeout), CONDVAR_TIMEOUT);
  const WhileWaiting waiting(mutex);
  return real(condvar, mutex, timeout);
}

bool TsanCondVarWaitWithDeadline(absl::CondVar* condvar, absl::Mutex* mutex,
                                 absl::Time deadline) asm(CONDVAR_DEADLINE);
bool TsanCondVarWaitWithDeadline(absl::CondVar* condvar, absl::Mutex* mutex, absl::Time deadline) {
  ABSL_TSAN_REAL(real, decltype(&TsanCondVarWaitWithDeadline), CONDVAR_DEADLINE);
  const WhileWaiting waiting(mutex);
  return real(condvar, mutex, deadline);
}

// HasBeenNotified is inline and reads the flag, which lies behind the mutex: its address stands for
// the notification.
static void* Flag(absl::Notification* notification) {
  return reinterpret_cast<char*>(notification) + sizeof(absl::Mutex);
}

void TsanNotify(absl::Notification* notification) asm(NOTIFY);
void TsanNotify(absl::Notification* notification) {
  ABSL_TSAN_REAL(real, decltype(&TsanNotify), NOTIFY);
  __tsan_release(Flag(notification));
  real(notification);
}

void TsanWait(absl::Notification* notification) asm(WAIT);
void TsanWait(absl::Notification* notification) {
  ABSL_TSAN_REAL(real, decltype(&TsanWait), WAIT);
  real(notification);
  __tsan_acquire(Flag(notification));
}

bool TsanWaitWithTimeout(absl::Notification* notification,
                         absl::Duration timeout) asm(WAIT_TIMEOUT);
bool TsanWaitWithTimeout(absl::Notification* notification, absl::Duration timeout) {
  ABSL_TSAN_REAL(real, decltype(&TsanWaitWithTimeout), WAIT_TIMEOUT);
  const bool notified = real(notification, timeout);
  if (notified) __tsan_acquire(Flag(notification));
  return notified;
}

// Debian's libraries are not instrumented: what their own locks order looks like a race where they
// call memmove or epoll_wait, or where gRPC's headers put a part of them into our objects.
extern "C" const char* __tsan_default_options() { return "ignore_noninstrumented_modules=1"; }
extern "C" const char* __tsan_default_suppressions() {
  return "race:^grpc::\nrace:grpc::internal\n";
}
