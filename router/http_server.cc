#include "router/http_server.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "router/http_connection.h"
#include "router/openai_error.h"

namespace conclave {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using Error = boost::system::error_code;

// Connections past the bound that are told so at the same time; more are closed unanswered.
constexpr int kMaxRefusals = 256;
// Accepting fails when file descriptors run out: others must close first.
constexpr absl::Duration kAcceptRest = absl::Milliseconds(50);

class BeastServer final : public HttpServer {
 public:
  explicit BeastServer(HttpServerOptions options)
      : options_(std::move(options)),
        io_(options_.threads),
        work_(asio::make_work_guard(io_)),
        acceptor_(asio::make_strand(io_)),
        accept_rest_(acceptor_.get_executor()) {}
  ~BeastServer() override { DrainAndStop(absl::ZeroDuration()); }

  absl::Status Listen();
  int port() const override { return port_; }
  void DrainAndStop(absl::Duration deadline) override;

 private:
  void Accept();
  void OnAccepted(Error error, tcp::socket socket);
  // Null where it must be closed unanswered.
  std::shared_ptr<HttpConnection> Register(tcp::socket socket, bool* refused);
  void Forget(const std::shared_ptr<HttpConnection>& connection);
  void ForEach(void (HttpConnection::*method)());

  const HttpServerOptions options_;
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  tcp::acceptor acceptor_;
  asio::steady_timer accept_rest_;
  int port_ = 0;
  std::vector<std::thread> threads_;
  absl::Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_set<std::shared_ptr<HttpConnection>> connections_ ABSL_GUARDED_BY(mutex_);
};

absl::Status BeastServer::Listen() {
  const std::string address = absl::StrCat(options_.host, ":", options_.port);
  Error error;
  tcp::resolver resolver(io_);
  const auto found =
      resolver.resolve(options_.host, absl::StrCat(options_.port),
                       tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || found.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "host is \"", options_.host, "\", want an address of this machine: ", error.message()));
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor_.open(endpoint.protocol(), error);
  // A port stays taken for a minute after its last connection otherwise; two servers still cannot
  // listen on one.
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(tcp::acceptor::max_listen_connections, error);
  if (!error) port_ = acceptor_.local_endpoint(error).port();
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen for HTTP on ", address, ": ", error.message()));
  }
  asio::post(acceptor_.get_executor(), [this] { Accept(); });
  for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { io_.run(); });
  return absl::OkStatus();
}

void BeastServer::Accept() {
  acceptor_.async_accept(asio::make_strand(io_), [this](Error error, tcp::socket socket) {
    OnAccepted(error, std::move(socket));
  });
}

void BeastServer::OnAccepted(Error error, tcp::socket socket) {
  if (!acceptor_.is_open()) return;
  if (error) {
    LOG_WARNING("cannot accept an HTTP connection: {}", error.message());
    accept_rest_.expires_after(absl::ToChronoMilliseconds(kAcceptRest));
    accept_rest_.async_wait([this](Error) {
      if (acceptor_.is_open()) Accept();
    });
    return;
  }
  bool refused = false;
  if (auto connection = Register(std::move(socket), &refused); connection == nullptr) {
  } else if (refused) {
    HttpResponse response = OpenAiHttpError(
        503, absl::StrCat("the server has ", options_.max_connections, " connections, its most"));
    response.headers = {{"Retry-After", "1"}};
    connection->Refuse(std::move(response));
  } else {
    connection->Start();
  }
  Accept();
}

std::shared_ptr<HttpConnection> BeastServer::Register(tcp::socket socket, bool* refused) {
  absl::MutexLock lock(&mutex_);
  const int count = static_cast<int>(connections_.size());
  if (draining_ || count >= options_.max_connections + kMaxRefusals) return nullptr;
  *refused = count >= options_.max_connections;
  auto connection = std::make_shared<HttpConnection>(
      std::move(socket), &options_,
      [this](const std::shared_ptr<HttpConnection>& closed) { Forget(closed); });
  connections_.insert(connection);
  return connection;
}

void BeastServer::Forget(const std::shared_ptr<HttpConnection>& connection) {
  absl::MutexLock lock(&mutex_);
  connections_.erase(connection);
}

void BeastServer::ForEach(void (HttpConnection::*method)()) {
  absl::MutexLock lock(&mutex_);
  for (const auto& connection : connections_) (connection.get()->*method)();
}

void BeastServer::DrainAndStop(absl::Duration deadline) {
  if (threads_.empty()) return;
  {
    absl::MutexLock lock(&mutex_);
    draining_ = true;  // whoever is accepted from now on is not registered
  }
  asio::post(acceptor_.get_executor(), [this] {
    Error ignored;
    acceptor_.close(ignored);
    accept_rest_.cancel(ignored);
  });
  const auto all_closed = [this]()
                              ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return connections_.empty(); };
  if (deadline > absl::ZeroDuration()) {
    // All are told before the first closes: whoever has seen that finds every answer the last.
    ForEach(&HttpConnection::BeginDrain);
    ForEach(&HttpConnection::CloseIfIdle);
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&all_closed), deadline);
  }
  ForEach(&HttpConnection::Stop);
  // Every connection is closed and unlinked before its last task: then nothing more is queued, and
  // the threads end when what is queued has run.
  work_.reset();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options) {
  auto server = std::make_unique<BeastServer>(std::move(options));
  RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace conclave
