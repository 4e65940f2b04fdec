#include "router/http_exchange.h"

#include <string>
#include <utility>

#include "router/http_connection.h"

namespace conclave {
namespace {

class Exchange final : public HttpExchange {
 public:
  explicit Exchange(std::shared_ptr<HttpLink> link) : link_(std::move(link)) {}
  ~Exchange() override {
    link_->Run([](HttpConnection* connection) {
      if (connection != nullptr) connection->AnswerDropped();
    });
  }

  void Send(HttpResponse response) override {
    link_->Run([response = std::move(response)](HttpConnection* connection) mutable {
      if (connection != nullptr) connection->Send(std::move(response));
    });
  }
  void StartStream(HttpResponse response) override {
    link_->Run([response = std::move(response)](HttpConnection* connection) mutable {
      if (connection != nullptr) connection->StartStream(std::move(response));
    });
  }
  void Write(std::string chunk, absl::AnyInvocable<void(bool ok)> done) override {
    link_->Run(
        [chunk = std::move(chunk), done = std::move(done)](HttpConnection* connection) mutable {
          if (connection == nullptr) return done(false);
          connection->Write(chunk, std::move(done));
        });
  }
  void EndStream() override {
    link_->Run([](HttpConnection* connection) {
      if (connection != nullptr) connection->EndStream();
    });
  }
  void OnGone(absl::AnyInvocable<void()> gone) override {
    link_->Run([gone = std::move(gone)](HttpConnection* connection) mutable {
      if (connection == nullptr) return gone();
      connection->OnGone(std::move(gone));
    });
  }

 private:
  const std::shared_ptr<HttpLink> link_;
};

}  // namespace

void HttpLink::Run(Action action) {
  {
    absl::MutexLock lock(&mutex_);
    if (connection_ != nullptr) {
      // Under the lock: the connection cannot end, nor its server, before this is queued, and what
      // is queued is run. By then the link may be cut.
      connection_->Post([self = shared_from_this(), action = std::move(action)]() mutable {
        action(self->connection());
      });
      return;
    }
  }
  action(nullptr);
}

void HttpLink::Cut() {
  absl::MutexLock lock(&mutex_);
  connection_ = nullptr;
}

HttpConnection* HttpLink::connection() {
  absl::MutexLock lock(&mutex_);
  return connection_;
}

std::shared_ptr<HttpExchange> MakeHttpExchange(std::shared_ptr<HttpLink> link) {
  return std::make_shared<Exchange>(std::move(link));
}

}  // namespace conclave
