#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/limits.h"

namespace conclave {

struct HttpRequest {
  std::string method;  // "GET"; also for HEAD, whose body the server leaves out
  std::string path;    // percent-decoded, without the query
  std::string query;   // as sent, without the '?'
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;

  // The first header of that name (in any case), or empty.
  absl::string_view Header(absl::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;  // further ones
  std::string body;
  // Of a stream: a chunk that is sent whenever nothing else was for keepalive_interval, so that no
  // proxy between takes it for dead. Empty: none.
  std::string keepalive;
};

// One request being answered: either one Send, or StartStream, any number of Write and one
// EndStream. Held by whoever answers; dropped without an answer, the client gets a 500.
// Thread-safe, and nothing blocks. After the server has stopped every call does nothing.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;

  virtual void Send(HttpResponse response) = 0;

  // 200 with chunked transfer encoding; `response.body` is the first chunk (may be empty).
  virtual void StartStream(HttpResponse response) = 0;
  // `done` is called once, from any thread and maybe before this returns, when the client may take
  // more: that is the backpressure. One Write at a time: the next after `done`. False: the client
  // is gone.
  virtual void Write(std::string chunk, absl::AnyInvocable<void(bool ok)> done) = 0;
  virtual void EndStream() = 0;

  // Called once, from any thread and maybe before this returns, if the client goes before the
  // answer is whole. Set before the first of the above; not called after Send or EndStream was.
  // `gone` must not own the exchange, which owns it.
  virtual void OnGone(absl::AnyInvocable<void()> gone) = 0;
};

// Answers one request, now or later. Called from the server's threads: must not block.
using HttpHandler =
    std::function<void(HttpRequest request, std::shared_ptr<HttpExchange> exchange)>;

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;     // 0 picks a free one
  int threads = 2;  // thousands of idle streams share them
  HttpHandler handler;
  int max_connections = limits::kMaxHttpConnections;
  size_t max_body_bytes = limits::kMaxHttpBodyBytes;
  absl::Duration header_timeout = limits::kHttpHeaderTimeout;  // also of an idle kept connection
  absl::Duration body_timeout = limits::kHttpBodyTimeout;
  absl::Duration write_timeout = limits::kHttpWriteTimeout;  // to a client that reads nothing
  absl::Duration keepalive_interval = absl::Seconds(15);     // proxies give up after 30 s or more
};

// An HTTP/1.1 server on Boost.Beast: keep-alive, Expect: 100-continue, chunked and plain bodies,
// HEAD, every bound above answered in OpenAI's error shape (400, 408, 413, 431, 503).
class HttpServer {
 public:
  // Unavailable if the port is taken, InvalidArgument for a host that is no address.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpServerOptions options);
  virtual ~HttpServer() = default;  // as DrainAndStop(0)

  virtual int port() const = 0;
  // Takes no new connection, answers what was asked, then closes; what is unanswered at the
  // deadline is cut. Blocks. Once.
  virtual void DrainAndStop(absl::Duration deadline) = 0;
};

}  // namespace conclave
