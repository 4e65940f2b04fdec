#include "worker/exchange_inbox.h"

#include <utility>

#include "common/limits.h"

namespace conclave {

bool ExchangeInbox::Push(ShardCombine combine) {
  {
    absl::MutexLock lock(&mutex_);
    if (combines_.size() >= static_cast<size_t>(limits::kMaxUnreadCombines)) return false;
    combines_.push_back(std::move(combine));
  }
  bell_.Ring();
  return true;
}

void ExchangeInbox::NotifyChanged() {
  {
    absl::MutexLock lock(&mutex_);
    ++changes_;
  }
  bell_.Ring();
}

uint64_t ExchangeInbox::changes() const {
  absl::MutexLock lock(&mutex_);
  return changes_;
}

void ExchangeInbox::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
  }
  bell_.Ring();
}

bool ExchangeInbox::stopped() const {
  absl::MutexLock lock(&mutex_);
  return stopped_;
}

bool ExchangeInbox::Take(uint64_t seen, std::vector<ShardCombine>* combines) {
  absl::MutexLock lock(&mutex_);
  const bool news = stopped_ || changes_ != seen || !combines_.empty();
  for (ShardCombine& combine : combines_) combines->push_back(std::move(combine));
  combines_.clear();
  return news;
}

void ExchangeInbox::WaitForChange(uint64_t seen, absl::Time deadline) const {
  absl::MutexLock lock(&mutex_);
  const auto changed = [this, seen]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopped_ || changes_ != seen;
  };
  mutex_.AwaitWithDeadline(absl::Condition(&changed), deadline);
}

}  // namespace conclave
