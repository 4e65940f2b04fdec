#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "router/http_server.h"

namespace conclave {

// A response as it came over the wire.
struct RawResponse {
  int status = 0;                              // 0: the connection ended before one came
  std::map<std::string, std::string> headers;  // names in small letters
  std::string body;                            // chunks put together
  bool whole = false;                          // it came to its end
};

// A blocking client socket; nothing that it waits for takes longer than 20 s.
class RawClient {
 public:
  explicit RawClient(int port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    CHECK(fd_ >= 0) << strerror(errno);
    const timeval limit = {.tv_sec = 20, .tv_usec = 0};
    const int on = 1;  // every Write is a packet, at once
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0)
        << strerror(errno);
  }
  RawClient(RawClient&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), unread_(std::move(other.unread_)) {}
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;
  ~RawClient() { Close(); }

  void Close() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }
  // Makes the kernel take little unread: a slow client is then noticed soon.
  void KeepReceiveBufferSmall() {
    const int bytes = 4096;
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
  }
  // False if the server has closed.
  bool Write(absl::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    return true;
  }
  bool Request(absl::string_view method, absl::string_view path, absl::string_view body = "",
               absl::string_view more_headers = "") {
    return Write(absl::StrCat(method, " ", path, " HTTP/1.1\r\nHost: test\r\n", more_headers,
                              "Content-Length: ", body.size(), "\r\n\r\n", body));
  }

  // Reads at least up to `text` and returns all of it up to there; everything if it never comes.
  std::string ReadUntil(absl::string_view text) {
    size_t found;
    while ((found = unread_.find(text.data(), 0, text.size())) == std::string::npos) {
      if (!ReadMore()) return std::exchange(unread_, {});
    }
    return Take(found + text.size());
  }
  // Waits for the end of the connection: everything until then.
  std::string ReadToEnd() {
    while (ReadMore()) {
    }
    return std::exchange(unread_, {});
  }
  // The head of the next response that is none of 1xx.
  RawResponse ReadHead() {
    RawResponse response;
    const std::string head = ReadUntil("\r\n\r\n");
    if (!absl::EndsWith(head, "\r\n\r\n")) return response;
    CHECK(absl::SimpleAtoi(head.substr(9, 3), &response.status)) << head;
    for (absl::string_view line : absl::StrSplit(head, "\r\n")) {
      const size_t colon = line.find(": ");
      if (colon == absl::string_view::npos) continue;
      response.headers[absl::AsciiStrToLower(line.substr(0, colon))] =
          std::string(line.substr(colon + 2));
    }
    return response.status < 200 ? ReadHead() : response;
  }
  // The next chunk of a chunked body; empty at its end.
  std::string ReadChunk() {
    const std::string size = ReadUntil("\r\n");
    uint64_t num_bytes = 0;
    if (!absl::SimpleHexAtoi(absl::StripAsciiWhitespace(size), &num_bytes)) return {};
    while (unread_.size() < num_bytes + 2 && ReadMore()) {
    }
    if (unread_.size() < num_bytes + 2) return {};
    std::string chunk = Take(num_bytes + 2);
    chunk.resize(num_bytes);
    chunk_end_seen_ = num_bytes == 0;
    return chunk;
  }
  RawResponse ReadResponse(bool has_body = true) {
    RawResponse response = ReadHead();
    if (response.status == 0) return response;
    const auto length_header = response.headers.find("content-length");
    if (!has_body || response.status == 204) {
      response.whole = true;
    } else if (response.headers.count("transfer-encoding") > 0) {
      chunk_end_seen_ = false;
      for (std::string chunk = ReadChunk(); !chunk.empty(); chunk = ReadChunk()) {
        response.body += chunk;
      }
      response.whole = chunk_end_seen_;
    } else if (uint64_t length; length_header != response.headers.end() &&
                                absl::SimpleAtoi(length_header->second, &length)) {
      while (unread_.size() < length && ReadMore()) {
      }
      response.whole = unread_.size() >= length;
      response.body = Take(std::min<size_t>(length, unread_.size()));
    } else {
      response.body = ReadToEnd();
      response.whole = true;
    }
    return response;
  }

 private:
  bool ReadMore() {
    char bytes[16384];
    const ssize_t count = recv(fd_, bytes, sizeof(bytes), 0);
    if (count > 0) unread_.append(bytes, static_cast<size_t>(count));
    return count > 0;
  }
  std::string Take(size_t num_bytes) {
    std::string taken = unread_.substr(0, num_bytes);
    unread_.erase(0, num_bytes);
    return taken;
  }

  int fd_;
  std::string unread_;
  bool chunk_end_seen_ = false;
};

// One request on a connection of its own.
inline RawResponse Fetch(int port, absl::string_view method, absl::string_view path,
                         absl::string_view body = "", absl::string_view more_headers = "") {
  RawClient client(port);
  CHECK(client.Request(method, path, body, more_headers));
  return client.ReadResponse();
}

// ---- a server, and the exchanges that it hands out ----

inline constexpr absl::Duration kHttpPatience = absl::Seconds(20);

inline HttpResponse Text(std::string body) {
  HttpResponse response;
  response.content_type = "text/plain";
  response.body = std::move(body);
  return response;
}

inline std::unique_ptr<HttpServer> Serve(HttpHandler handler, HttpServerOptions options = {}) {
  options.handler = std::move(handler);
  auto server = HttpServer::Start(std::move(options));
  CHECK(server.ok()) << server.status().ToString();
  return *std::move(server);
}

// Hands the exchanges to the test, which answers them.
class Inbox {
 public:
  HttpHandler handler() {
    return [this](HttpRequest, std::shared_ptr<HttpExchange> exchange) {
      absl::MutexLock lock(&mutex_);
      exchanges_.push_back(std::move(exchange));
    };
  }
  std::shared_ptr<HttpExchange> Take() {
    absl::MutexLock lock(&mutex_);
    const auto any = [this] { return !exchanges_.empty(); };
    CHECK(mutex_.AwaitWithTimeout(absl::Condition(&any), kHttpPatience));
    auto exchange = std::move(exchanges_.front());
    exchanges_.pop_front();
    return exchange;
  }

 private:
  absl::Mutex mutex_;
  std::deque<std::shared_ptr<HttpExchange>> exchanges_;
};

// Whether the client could take it; waits for that.
inline bool WriteAndWait(HttpExchange& exchange, std::string chunk) {
  absl::Notification written;
  std::atomic<bool> result = false;
  exchange.Write(std::move(chunk), [&](bool ok) {
    result = ok;
    written.Notify();
  });
  CHECK(written.WaitForNotificationWithTimeout(kHttpPatience));
  return result;
}

}  // namespace conclave
