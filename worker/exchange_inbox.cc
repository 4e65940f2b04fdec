#include "worker/exchange_inbox.h"

#include <utility>

#include "common/limits.h"

namespace conclave {

bool ExchangeInbox::Push(ShardCombine combine) {
  absl::MutexLock lock(&mutex_);
  if (combines_.size() >= static_cast<size_t>(limits::kMaxUnreadCombines)) return false;
  combines_.push_back(std::move(combine));
  return true;
}

void ExchangeInbox::NotifyChanged() {
  absl::MutexLock lock(&mutex_);
  changed_ = true;
}

void ExchangeInbox::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
}

bool ExchangeInbox::stopped() const {
  absl::MutexLock lock(&mutex_);
  return stopped_;
}

bool ExchangeInbox::Wait(absl::Time deadline, std::vector<ShardCombine>* combines) {
  combines->clear();
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithDeadline(absl::Condition(this, &ExchangeInbox::HasNews), deadline);
  combines->swap(combines_);
  return std::exchange(changed_, false);
}

}  // namespace conclave
