#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"

namespace conclave {

// Takes the events of one request, v1::ChatEvent or v1::GenerateEvent: a gRPC stream, an HTTP
// response. Pull-driven, which is the backpressure: each RequestHandle::Next() is answered by
// exactly one call, and nothing is called without it. Calls come from any thread and must not
// block.
template <typename Event>
class RequestObserver {
 public:
  virtual ~RequestObserver() = default;
  // At least one event, in order. The first of a request is `started`, the last `finished`.
  virtual void OnEvents(std::vector<Event> events) = 0;
  // The last call: OK after `finished`, else why the request ended without it (before `started`
  // if it was not accepted). The observer may be destroyed in it.
  virtual void OnEnd(absl::Status status) = 0;
};

// The observer's side of a request in flight. Thread-safe.
class RequestHandle {
 public:
  virtual ~RequestHandle() = default;
  // Asks for the next call; once after the request was begun and once after each OnEvents. The
  // call may come before this returns.
  virtual void Next() = 0;
  // The client is gone: the worker stops. OnEnd(CANCELLED) answers the Next() that waits, or the
  // next one.
  virtual void Cancel() = 0;
};

}  // namespace conclave
