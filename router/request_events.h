#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "proto/conclave/v1/inference.pb.h"
#include "proto/conclave/v1/worker.pb.h"
#include "router/prompt_builder.h"
#include "router/request_observer.h"

namespace conclave {

// Whether ids[index] of the event is the id that stopped generation: it has no text.
inline bool IsStopId(const v1::TokenEvent& event, int index) {
  return event.finish_reason() == v1::FINISH_REASON_STOP && index + 1 == event.ids_size() &&
         event.ids(index) == event.stop_id();
}

// Turns one request's tokens into the events its observer gets, and keeps them until it takes
// them. Not thread-safe: InflightRequest's lock guards it.
class RequestEvents {
 public:
  virtual ~RequestEvents() = default;

  // First and once: nothing below may be called before, but for taking the end.
  virtual void Start(const PreparedRequest& prepared, const v1::Started& started) = 0;
  // True once no more tokens are wanted: a stop string is complete.
  virtual bool Push(const v1::TokenEvent& event) = 0;
  // Sends what text was held back, then `finished`, which it returns.
  virtual v1::Finished Finish(v1::ChatFinishReason reason, uint32_t failovers) = 0;
  virtual bool any_answer() const = 0;
  // The answer's text as it was sent; empty if PreparedRequest::conversation was.
  virtual std::string TakeAnswer() = 0;

  // Events made and not taken.
  virtual bool HasEvents() const = 0;
  // Takes them, or takes the end: what it returns calls the observer and runs outside the lock.
  virtual absl::AnyInvocable<void()> TakeEvents() = 0;
  virtual absl::AnyInvocable<void()> TakeEnd(absl::Status status) = 0;
  virtual void DropEvents() = 0;
};

// The part of it that keeps the events.
template <typename Event>
class EventOutbox : public RequestEvents {
 public:
  // `observer` lives until its OnEnd.
  explicit EventOutbox(RequestObserver<Event>* observer) : observer_(observer) {}

  bool HasEvents() const override { return !events_.empty(); }
  absl::AnyInvocable<void()> TakeEvents() override {
    return [observer = observer_, events = std::exchange(events_, {})]() mutable {
      observer->OnEvents(std::move(events));
    };
  }
  absl::AnyInvocable<void()> TakeEnd(absl::Status status) override {
    return [observer = observer_, status = std::move(status)] { observer->OnEnd(status); };
  }
  void DropEvents() override { events_.clear(); }

 protected:
  std::vector<Event>& events() { return events_; }

 private:
  RequestObserver<Event>* const observer_;
  std::vector<Event> events_;
};

}  // namespace conclave
