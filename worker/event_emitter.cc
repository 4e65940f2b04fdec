#include "worker/event_emitter.h"

#include <utility>

#include "common/limits.h"

namespace conclave {

EventEmitter::EventEmitter() : thread_([this] { ThreadMain(); }) {}

EventEmitter::~EventEmitter() {
  Flush();
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void EventEmitter::OnEvent(std::shared_ptr<TokenSink> sink, v1::TokenEvent event) {
  collected_.push_back({std::move(sink), std::move(event), std::nullopt});
}

void EventEmitter::OnDone(std::shared_ptr<TokenSink> sink, absl::Status status) {
  collected_.push_back({std::move(sink), v1::TokenEvent(), std::move(status)});
}

bool EventEmitter::HasRoom() const { return batches_.size() < limits::kMaxUnsentSteps; }

void EventEmitter::Flush() {
  if (collected_.empty()) return;
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &EventEmitter::HasRoom));
  batches_.push_back(std::exchange(collected_, {}));
}

void EventEmitter::ThreadMain() {
  for (;;) {
    Batch batch;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &EventEmitter::HasWork));
      if (batches_.empty()) return;
      batch = std::move(batches_.front());
      batches_.pop_front();
    }
    for (Item& item : batch) {
      if (item.done.has_value()) {
        item.sink->OnDone(*item.done);
      } else {
        item.sink->OnEvent(std::move(item.event));
      }
    }
  }
}

}  // namespace conclave
