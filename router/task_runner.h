#pragma once

#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "common/bounded_queue.h"

namespace conclave {

// A few threads for work too long for gRPC's threads: tokenizing a large prompt. Thread-safe.
class TaskRunner {
 public:
  using Task = absl::AnyInvocable<void()>;

  TaskRunner(int num_threads, size_t max_queued);
  // Runs what is queued, then stops.
  ~TaskRunner();
  TaskRunner(const TaskRunner&) = delete;
  TaskRunner& operator=(const TaskRunner&) = delete;

  // False when the queue is full.
  bool TryRun(Task task) { return tasks_.TryPush(std::move(task)); }

 private:
  BoundedQueue<Task> tasks_;
  std::vector<std::thread> threads_;
};

}  // namespace conclave
