#pragma once

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "router/http_server.h"

namespace conclave {

class HttpConnection;

// Leads from whoever answers a request to the connection that it came on, for as long as an answer
// is wanted there. It owns no connection and keeps none alive, so that an exchange may be held
// longer than its server lives.
class HttpLink : public std::enable_shared_from_this<HttpLink> {
 public:
  using Action = absl::AnyInvocable<void(HttpConnection* connection)>;

  explicit HttpLink(HttpConnection* connection) : connection_(connection) {}

  // Runs `action` on the connection's strand, or at once with null where the link is cut. Actions
  // of one thread run in their order.
  void Run(Action action);

  // The connection does so, on its strand and before it ends: the answer is whole, or the client
  // is gone.
  void Cut();

 private:
  HttpConnection* connection();

  absl::Mutex mutex_;
  HttpConnection* connection_ ABSL_GUARDED_BY(mutex_);
};

// The exchange that a handler gets; see HttpExchange.
std::shared_ptr<HttpExchange> MakeHttpExchange(std::shared_ptr<HttpLink> link);

}  // namespace conclave
