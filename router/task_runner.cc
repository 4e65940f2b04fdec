#include "router/task_runner.h"

#include <optional>

namespace conclave {

TaskRunner::TaskRunner(int num_threads, size_t max_queued) : tasks_(max_queued) {
  for (int i = 0; i < num_threads; ++i) {
    threads_.emplace_back([this] {
      while (std::optional<Task> task = tasks_.Pop()) (*task)();
    });
  }
}

TaskRunner::~TaskRunner() {
  tasks_.Close();
  for (std::thread& thread : threads_) thread.join();
}

}  // namespace conclave
