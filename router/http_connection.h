#pragma once

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "router/http_exchange.h"
#include "router/http_server.h"

namespace conclave {

// One client's connection: reads a request, has it answered, and again. Everything but the first
// block below happens on its strand, the executor of its socket, so that no field needs a lock.
// It lives by the operations that it waits for, and ends with its last one after Close.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  using Closed = std::function<void(const std::shared_ptr<HttpConnection>& connection)>;

  // `options` outlives it. `closed` is called once, on the strand, when it is of no more use.
  HttpConnection(Socket socket, const HttpServerOptions* options, Closed closed);

  // ---- from any thread ----
  void Start();
  // Instead of Start: answers this unasked and closes.
  void Refuse(HttpResponse response);
  // From now on the next answer is the last.
  void BeginDrain() { draining_ = true; }
  // After BeginDrain: a connection on which nothing is asked or answered will see no answer.
  void CloseIfIdle();
  void Stop();
  // Runs `task` on the strand.
  template <typename Task>
  void Post(Task task) {
    boost::asio::post(socket_.get_executor(),
                      [self = shared_from_this(), task = std::move(task)]() mutable { task(); });
  }

  // ---- on the strand: HttpExchange's calls ----
  void Send(HttpResponse response);
  void StartStream(HttpResponse response);
  void Write(const std::string& chunk, absl::AnyInvocable<void(bool ok)> done);
  void EndStream();
  void OnGone(absl::AnyInvocable<void()> gone) { gone_ = std::move(gone); }
  // Nobody will answer any more.
  void AnswerDropped();

 private:
  using Error = boost::system::error_code;
  using Clock = std::chrono::steady_clock;
  enum class State {
    kIdle,  // waits for the first byte of a request
    kReadingHeader,
    kReadingBody,
    kAnswering,  // until the last byte of the answer is written
    kLingering,  // has answered and closed its side; discards what still comes
    kClosed,
  };

  // ---- reading ----
  void AwaitRequest();
  void ReadHeader();
  void OnHeader(Error error);
  void AllowBody();
  void ReadBody();
  void OnBody(Error error);
  void OnReadError(Error error);
  void Dispatch();
  // Answers what is no request, then closes.
  void Fail(int status, absl::string_view message);

  // Has OnReadable called when there are bytes, or none will come any more.
  void Watch();
  void OnReadable();

  // ---- writing ----
  void BeginAnswer();
  void EndAnswer();
  void Flush();
  void WriteSome();
  void OnWritten(Error error, size_t num_bytes);
  void AnswerWritten();

  // ---- ending ----
  void Linger();
  void Discard();
  void Close();

  // Calls OnTimeout after that long unless a later call replaces it.
  void SetDeadline(absl::Duration timeout);
  void ArmTimer();
  void OnTimer();
  void OnTimeout();

  Socket socket_;
  const HttpServerOptions* const options_;
  Closed closed_;
  State state_ = State::kIdle;
  std::atomic<bool> draining_ = false;
  bool watching_ = false;

  // One timer, moved only to fire earlier: a deadline that moves away costs an assignment.
  boost::asio::steady_timer timer_;
  Clock::time_point deadline_ = Clock::time_point::max();
  Clock::time_point armed_ = Clock::time_point::max();
  bool timed_out_ = false;  // of the read in flight

  // ---- the request ----
  boost::beast::flat_buffer buffer_;  // read and not parsed
  std::optional<boost::beast::http::request_parser<boost::beast::http::string_body>> parser_;
  bool keep_alive_ = true;
  bool http_1_0_ = false;
  bool is_head_ = false;
  bool linger_ = false;  // bytes of the request may still come: closing at once would reset

  // ---- its answer ----
  std::shared_ptr<HttpLink> link_;
  absl::AnyInvocable<void()> gone_;
  bool started_ = false;  // Send or StartStream was called
  bool ended_ = false;    // Send or EndStream was called
  bool chunked_ = false;
  bool writing_ = false;
  std::string keepalive_;
  std::string outgoing_;  // being written, of which so much is
  size_t written_ = 0;
  absl::AnyInvocable<void(bool)> outgoing_done_;
  std::string queued_;  // to be written next
  absl::AnyInvocable<void(bool)> queued_done_;
};

}  // namespace conclave
