#include "router/http_connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/write.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/read.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "router/http_message.h"
#include "router/openai_error.h"

namespace conclave {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

// The header and what was read beyond it. Also bounds a chunk's extensions.
constexpr size_t kMaxBufferBytes = 2 * limits::kMaxHttpHeaderBytes;
// For a client that is told that its request was refused while it still sends it.
constexpr absl::Duration kLinger = absl::Seconds(2);
constexpr size_t kDiscardBytes = 16 << 10;
constexpr absl::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

absl::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

HttpConnection::HttpConnection(Socket socket, const HttpServerOptions* options, Closed closed)
    : socket_(std::move(socket)),
      options_(options),
      closed_(std::move(closed)),
      timer_(socket_.get_executor()),
      buffer_(kMaxBufferBytes) {}

void HttpConnection::Start() {
  Post([this] {
    Error ignored;  // merely slower without
    socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    AwaitRequest();
  });
}

void HttpConnection::Refuse(HttpResponse response) {
  Post([this, response = std::move(response)]() mutable {
    keep_alive_ = false;
    linger_ = true;
    BeginAnswer();
    Send(std::move(response));
  });
}

void HttpConnection::CloseIfIdle() {
  Post([this] {
    if (state_ == State::kIdle) Close();
  });
}

void HttpConnection::Stop() {
  Post([this] { Close(); });
}

// ---- reading ----

void HttpConnection::AwaitRequest() {
  state_ = State::kIdle;
  if (buffer_.size() > 0) return ReadHeader();
  if (draining_) return Close();
  SetDeadline(options_->header_timeout);
  Watch();
}

void HttpConnection::ReadHeader() {
  state_ = State::kReadingHeader;
  SetDeadline(options_->header_timeout);
  parser_.emplace();
  parser_->header_limit(limits::kMaxHttpHeaderBytes);
  parser_->body_limit(options_->max_body_bytes);
  http::async_read_header(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](Error error, size_t) { self->OnHeader(error); });
}

void HttpConnection::OnHeader(Error error) {
  if (state_ == State::kClosed) return;
  if (error) return OnReadError(error);
  const auto& header = parser_->get();
  http_1_0_ = header.version() < 11;
  keep_alive_ = parser_->keep_alive();
  is_head_ = header.method() == http::verb::head;
  state_ = State::kReadingBody;
  SetDeadline(options_->body_timeout);
  const absl::string_view expect = View(header[http::field::expect]);
  if (expect.empty() || http_1_0_) return ReadBody();
  if (!absl::EqualsIgnoreCase(expect, "100-continue")) {
    return Fail(417, absl::StrCat("Expect is \"", expect.substr(0, 100), "\", want 100-continue"));
  }
  AllowBody();
}

void HttpConnection::AllowBody() {
  asio::async_write(socket_, asio::buffer(kContinue.data(), kContinue.size()),
                    [self = shared_from_this()](Error error, size_t) {
                      if (self->state_ == State::kClosed) return;
                      if (error) return self->OnReadError(error);
                      self->ReadBody();
                    });
}

void HttpConnection::ReadBody() {
  if (parser_->is_done()) return Dispatch();
  http::async_read(socket_, buffer_, *parser_,
                   [self = shared_from_this()](Error error, size_t) { self->OnBody(error); });
}

void HttpConnection::OnBody(Error error) {
  if (state_ == State::kClosed) return;
  if (error) return OnReadError(error);
  Dispatch();
}

void HttpConnection::OnReadError(Error error) {
  if (timed_out_) {
    const bool header = state_ == State::kReadingHeader;
    const absl::Duration allowed = header ? options_->header_timeout : options_->body_timeout;
    return Fail(408, absl::StrCat("the request's ", header ? "header" : "body",
                                  " did not come within ", absl::FormatDuration(allowed)));
  }
  if (error == http::error::body_limit) {
    return Fail(413, absl::StrCat("the request's body is larger than ", options_->max_body_bytes,
                                  " bytes"));
  }
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return Fail(431, absl::StrCat("the request's header is larger than ",
                                  limits::kMaxHttpHeaderBytes, " bytes"));
  }
  const bool gone = error.category() != make_error_code(http::error::bad_method).category() ||
                    error == http::error::end_of_stream || error == http::error::partial_message;
  if (gone) return Close();
  Fail(400, absl::StrCat("this is no HTTP/1.1 request: ", error.message()));
}

void HttpConnection::Fail(int status, absl::string_view message) {
  keep_alive_ = false;
  linger_ = true;
  BeginAnswer();
  Send(OpenAiHttpError(status, message));
}

void HttpConnection::Dispatch() {
  HttpRequest request;
  {
    http::request<http::string_body> message = parser_->release();
    request.method = is_head_ ? "GET" : std::string(View(message.method_string()));
    for (const auto& field : message) {
      request.headers.emplace_back(View(field.name_string()), View(field.value()));
    }
    if (absl::Status parsed = ParseHttpTarget(View(message.target()), &request); !parsed.ok()) {
      return Fail(400, parsed.message());
    }
    request.body = std::move(message.body());
  }
  if (buffer_.size() == 0) buffer_.shrink_to_fit();  // an idle stream should hold little
  BeginAnswer();
  SetDeadline(absl::InfiniteDuration());  // the answer may take as long as it does
  Watch();
  link_ = std::make_shared<HttpLink>(this);
  options_->handler(std::move(request), MakeHttpExchange(link_));
}

void HttpConnection::Watch() {
  if (watching_) return;
  watching_ = true;
  socket_.async_wait(Socket::wait_read, [self = shared_from_this()](Error) {
    self->watching_ = false;
    self->OnReadable();
  });
}

void HttpConnection::OnReadable() {
  if (state_ == State::kIdle) return ReadHeader();
  if (state_ != State::kAnswering || ended_) return;
  char byte;
  const ssize_t num_bytes = recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (num_bytes > 0) return;  // the next request: it waits, and so does noticing that they went
  if (num_bytes < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return Watch();
  Close();
}

// ---- writing ----

void HttpConnection::BeginAnswer() {
  state_ = State::kAnswering;
  timed_out_ = false;
  parser_.reset();
  started_ = ended_ = chunked_ = false;
  keepalive_.clear();
}

void HttpConnection::Send(HttpResponse response) {
  if (std::exchange(started_, true)) return;
  if (draining_) keep_alive_ = false;
  const bool bodiless = response.status == 204 || response.status == 304;
  if (bodiless) response.content_type.clear();
  queued_ = EncodeHttpHead(response,
                           {.length = !bodiless, .keep_alive = keep_alive_, .http_1_0 = http_1_0_});
  if (!bodiless && !is_head_) queued_ += response.body;
  EndAnswer();
}

void HttpConnection::StartStream(HttpResponse response) {
  if (std::exchange(started_, true)) return;
  if (draining_ || http_1_0_) keep_alive_ = false;  // its end is then the connection's
  chunked_ = !http_1_0_;
  keepalive_ = std::move(response.keepalive);
  queued_ = EncodeHttpHead(response, {.chunked = chunked_, .keep_alive = keep_alive_});
  if (is_head_) {
    keepalive_.clear();
  } else {
    queued_ += chunked_ ? EncodeHttpChunk(response.body) : response.body;
  }
  Flush();
}

void HttpConnection::Write(const std::string& chunk, absl::AnyInvocable<void(bool)> done) {
  if (!started_ || ended_ || queued_done_ != nullptr) return done(false);
  if (!is_head_) queued_ += chunked_ ? EncodeHttpChunk(chunk) : chunk;
  if (queued_.empty()) return done(true);
  queued_done_ = std::move(done);
  Flush();
}

void HttpConnection::EndStream() {
  if (!started_ || ended_) return;
  if (chunked_ && !is_head_) absl::StrAppend(&queued_, kLastHttpChunk);
  EndAnswer();
}

void HttpConnection::EndAnswer() {
  ended_ = true;
  if (link_ != nullptr) link_->Cut();
  link_ = nullptr;
  gone_ = nullptr;
  Flush();
}

void HttpConnection::AnswerDropped() {
  if (started_) {  // no last chunk: the client must see that its stream is not whole
    keep_alive_ = false;
    return EndAnswer();
  }
  LOG_ERROR("a request was dropped without an answer");
  Send(OpenAiHttpError(500, "the request was dropped without an answer"));
}

void HttpConnection::Flush() {
  if (state_ != State::kAnswering || writing_) return;
  if (queued_.empty()) {
    if (ended_) return AnswerWritten();
    return SetDeadline(keepalive_.empty() ? absl::InfiniteDuration()
                                          : options_->keepalive_interval);
  }
  writing_ = true;
  written_ = 0;
  outgoing_ = std::exchange(queued_, {});
  outgoing_done_ = std::exchange(queued_done_, nullptr);
  WriteSome();
}

void HttpConnection::WriteSome() {
  SetDeadline(options_->write_timeout);
  socket_.async_write_some(asio::buffer(outgoing_.data() + written_, outgoing_.size() - written_),
                           [self = shared_from_this()](Error error, size_t num_bytes) {
                             self->OnWritten(error, num_bytes);
                           });
}

void HttpConnection::OnWritten(Error error, size_t num_bytes) {
  if (state_ == State::kClosed) return;
  if (error) return Close();
  written_ += num_bytes;
  if (written_ < outgoing_.size()) return WriteSome();
  writing_ = false;
  outgoing_ = {};
  if (outgoing_done_ != nullptr) std::exchange(outgoing_done_, nullptr)(true);
  Flush();
}

void HttpConnection::AnswerWritten() {
  if (keep_alive_ && !draining_) return AwaitRequest();
  if (linger_) return Linger();
  Close();
}

// ---- ending ----

void HttpConnection::Linger() {
  state_ = State::kLingering;
  Error error;
  socket_.shutdown(Socket::shutdown_send, error);
  if (error) return Close();
  buffer_.clear();
  SetDeadline(kLinger);
  Discard();
}

void HttpConnection::Discard() {
  socket_.async_read_some(buffer_.prepare(kDiscardBytes),
                          [self = shared_from_this()](Error error, size_t) {
                            if (self->state_ == State::kClosed) return;
                            if (error) return self->Close();
                            self->Discard();
                          });
}

void HttpConnection::Close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  if (link_ != nullptr) link_->Cut();
  link_ = nullptr;
  Error ignored;
  timer_.cancel(ignored);
  socket_.close(ignored);
  for (auto* done : {&outgoing_done_, &queued_done_}) {
    if (*done != nullptr) std::exchange(*done, nullptr)(false);
  }
  if (gone_ != nullptr) std::exchange(gone_, nullptr)();
  closed_(shared_from_this());
}

// ---- time ----

void HttpConnection::SetDeadline(absl::Duration timeout) {
  timed_out_ = false;
  deadline_ = timeout == absl::InfiniteDuration()
                  ? Clock::time_point::max()
                  : Clock::now() + absl::ToChronoNanoseconds(timeout);
  if (deadline_ < armed_) ArmTimer();
}

void HttpConnection::ArmTimer() {
  armed_ = deadline_;
  timer_.expires_at(deadline_);
  timer_.async_wait([self = shared_from_this()](Error error) {
    if (!error) self->OnTimer();
  });
}

void HttpConnection::OnTimer() {
  armed_ = Clock::time_point::max();
  if (state_ == State::kClosed) return;
  if (Clock::now() >= deadline_) return OnTimeout();
  if (deadline_ != Clock::time_point::max()) ArmTimer();
}

void HttpConnection::OnTimeout() {
  deadline_ = Clock::time_point::max();
  switch (state_) {
    case State::kReadingHeader:
    case State::kReadingBody: {
      timed_out_ = true;
      Error ignored;
      socket_.cancel(ignored);  // ends the read, which answers
      return;
    }
    case State::kAnswering:
      if (writing_) return Close();
      queued_ += chunked_ ? EncodeHttpChunk(keepalive_) : keepalive_;
      return Flush();
    default:
      return Close();
  }
}

}  // namespace conclave
