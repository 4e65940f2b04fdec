#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "rpc/name_resolver.h"

namespace conclave {

// Answers what a test says.
class FakeResolver final : public NameResolver {
 public:
  void Set(const std::string& target, absl::StatusOr<std::vector<std::string>> answer) {
    absl::MutexLock lock(&mutex_);
    answers_[target] = std::move(answer);
  }
  int asked() const {
    absl::MutexLock lock(&mutex_);
    return asked_;
  }

  absl::StatusOr<std::vector<std::string>> Resolve(const std::string& target,
                                                   absl::Time /*deadline*/) override {
    absl::MutexLock lock(&mutex_);
    ++asked_;
    const auto found = answers_.find(target);
    if (found == answers_.end()) return absl::NotFoundError(absl::StrCat("no ", target));
    return found->second;
  }
  void Stop() override {}

 private:
  mutable absl::Mutex mutex_;
  std::map<std::string, absl::StatusOr<std::vector<std::string>>> answers_;
  int asked_ = 0;
};

}  // namespace conclave
