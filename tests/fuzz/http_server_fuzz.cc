// Whatever bytes come, in whatever pieces, the server answers or closes: it never hangs, and what
// it sends is HTTP. Over loopback, against one server for the whole run.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "common/check.h"
#include "router/http_server.h"
#include "tests/fuzz/byte_source.h"

namespace conclave {
namespace {

// Far less than the server's own timeouts: they must not be what ends a connection.
constexpr int kHangSeconds = 8;

// "/stream" is answered in chunks, "/drop" not at all, anything else with its body.
void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
  if (request.path == "/drop") return;
  HttpResponse response;
  response.content_type = "text/plain";
  response.body = std::move(request.body);
  if (request.path != "/stream") return exchange->Send(std::move(response));
  exchange->StartStream(std::move(response));
  exchange->Write("more", [exchange](bool) { exchange->EndStream(); });
}

HttpServer& Server() {
  static HttpServer* const server = [] {
    HttpServerOptions options;
    options.handler = Handle;
    options.max_body_bytes = 1 << 16;
    auto started = HttpServer::Start(std::move(options));
    CHECK(started.ok()) << started.status();
    // libFuzzer's clock ticks by this signal: in the server's threads, not in a call of ours.
    sigset_t alarm;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &alarm, nullptr);
    return started->release();
  }();
  return *server;
}

class Connection {
 public:
  explicit Connection(int port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    CHECK(fd_ >= 0) << strerror(errno);
    const int yes = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    const timeval limit = {.tv_sec = kHangSeconds, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    // Thousands of connections a second would use up the ports of one address.
    static uint32_t connections = 0;
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + ++connections % 50000);
    CHECK(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0)
        << strerror(errno);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    CHECK(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0)
        << strerror(errno);
  }
  ~Connection() { close(fd_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // False if the server has closed already.
  bool Write(absl::string_view bytes) {
    const ssize_t count = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    CHECK(count >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) << "the server takes nothing";
    return count == static_cast<ssize_t>(bytes.size());
  }
  void EndWriting() { shutdown(fd_, SHUT_WR); }
  // Everything until the server closes.
  std::string ReadToEnd() {
    std::string all;
    char bytes[4096];
    for (;;) {
      const ssize_t count = recv(fd_, bytes, sizeof(bytes), 0);
      CHECK(count >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) << "the server hangs";
      if (count <= 0) return all;
      all.append(bytes, static_cast<size_t>(count));
    }
  }

 private:
  const int fd_;
};

}  // namespace
}  // namespace conclave

// The first byte says how the rest is cut; every fourth client goes without reading.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  ByteSource source(data, size);
  const uint8_t seed = source.Byte();
  Connection connection(Server().port());
  for (const std::string& piece : CutAnywhere(source.Rest(), seed)) {
    if (!connection.Write(piece)) break;
  }
  if (seed % 4 == 3) return 0;
  connection.EndWriting();
  const std::string answer = connection.ReadToEnd();
  if (!answer.empty()) CHECK(absl::StartsWith(answer, "HTTP/1.")) << answer;
  return 0;
}
