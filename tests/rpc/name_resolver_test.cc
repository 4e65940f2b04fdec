#include "rpc/name_resolver.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> Ask(const std::string& target) {
  const auto addresses = MakeDnsResolver()->Resolve(target, absl::Now() + absl::Seconds(60));
  EXPECT_OK(addresses);
  return addresses.value_or(std::vector<std::string>());
}

// A name server on a socket of its own. It answers each question for addresses of IPv4 with those
// of `ipv4`, and for IPv6 with those of `ipv6`; if both are empty, not at all.
class NameServer {
 public:
  NameServer(std::vector<std::string> ipv4, std::vector<std::string> ipv6)
      : ipv4_(std::move(ipv4)), ipv6_(std::move(ipv6)) {
    socket_ = socket(AF_INET, SOCK_DGRAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    CHECK_EQ(bind(socket_, reinterpret_cast<sockaddr*>(&address), size), 0);
    CHECK_EQ(getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Serve(); });
  }
  ~NameServer() {
    shutdown(socket_, SHUT_RDWR);  // wakes recvfrom
    thread_.join();
    close(socket_);
  }
  std::string target() const {
    return absl::StrCat("dns://127.0.0.1:", port_, "/workers.test:50061");
  }

 private:
  void Serve() {
    char buffer[512];
    while (true) {
      sockaddr_in from = {};
      socklen_t from_size = sizeof(from);
      const ssize_t size = recvfrom(socket_, buffer, sizeof(buffer), 0,
                                    reinterpret_cast<sockaddr*>(&from), &from_size);
      if (size <= 12) return;
      if (ipv4_.empty() && ipv6_.empty()) continue;
      const std::string answer = Answer(std::string(buffer, static_cast<size_t>(size)));
      sendto(socket_, answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&from),
             from_size);
    }
  }

  std::string Answer(const std::string& question) const {
    size_t end = 12;
    while (question[end] != 0) end += 1 + static_cast<size_t>(question[end]);
    const char type = question[end + 2];  // 1: A, 28: AAAA
    const std::vector<std::string>& addresses = type == 1 ? ipv4_ : ipv6_;
    std::string answer = question.substr(0, 2);
    answer += std::string("\x81\x80\0\1\0", 5);
    answer += static_cast<char>(addresses.size());
    answer += std::string(4, '\0') + question.substr(12, end + 5 - 12);
    for (const std::string& address : addresses) {
      char bytes[16];
      const int length = type == 1 ? 4 : 16;
      CHECK_EQ(inet_pton(type == 1 ? AF_INET : AF_INET6, address.c_str(), bytes), 1);
      answer += std::string("\xc0\x0c\0", 3) + type + std::string("\0\1\0\0\0\0\0", 7);
      answer += static_cast<char>(length) + std::string(bytes, static_cast<size_t>(length));
    }
    return answer;
  }

  const std::vector<std::string> ipv4_, ipv6_;
  int socket_ = -1;
  int port_ = 0;
  std::thread thread_;
};

TEST(DnsTargetTest, IsTakenApart) {
  for (const char* text : {"dns:///workers:50061", "dns:workers:50061"}) {
    ASSERT_OK_AND_ASSIGN(const DnsTarget target, ParseDnsTarget(text));
    EXPECT_EQ(target.server, "");
    EXPECT_EQ(target.name, "workers");
    EXPECT_EQ(target.port, 50061);
  }
  ASSERT_OK_AND_ASSIGN(const DnsTarget asked, ParseDnsTarget("dns://10.0.0.10:53/w.test:1"));
  EXPECT_EQ(asked.server, "10.0.0.10:53");
  EXPECT_EQ(asked.name, "w.test");
}

TEST(DnsTargetTest, SaysWhatItWants) {
  for (const char* text : {"dns:///workers", "dns:///:1", "dns://server", "dns:///workers:0",
                           "dns:", "dns:///workers:70000"}) {
    EXPECT_THAT(CheckPeerTarget(text),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("want dns:///NAME:PORT")))
        << text;
  }
  EXPECT_THAT(CheckPeerTarget(""), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(CheckPeerTarget("host:1"));  // gRPC's own affair
  EXPECT_OK(CheckPeerTarget("unix:/tmp/socket"));
}

TEST(DnsResolverTest, EveryAddressIsOne) {
  const NameServer server({"10.0.0.9", "10.0.0.10", "10.0.0.9"}, {});
  EXPECT_THAT(Ask(server.target()), ElementsAre("10.0.0.10:50061", "10.0.0.9:50061"));
}

TEST(DnsResolverTest, APeerInTwoNetworksIsOne) {
  const NameServer both({"10.0.0.9"}, {"fd00::9"});
  EXPECT_THAT(Ask(both.target()), ElementsAre("10.0.0.9:50061"));
  const NameServer ipv6({}, {"fd00::9", "fd00::7"});
  EXPECT_THAT(Ask(ipv6.target()), ElementsAre("[fd00::7]:50061", "[fd00::9]:50061"));
}

TEST(DnsResolverTest, AnAddressIsItself) {
  EXPECT_THAT(Ask("dns:///127.0.0.1:7"), ElementsAre("127.0.0.1:7"));
}

TEST(DnsResolverTest, ASilentServerCostsNoMoreThanTheDeadline) {
  const NameServer silent({}, {});
  EXPECT_THAT(
      MakeDnsResolver()->Resolve(silent.target(), absl::Now() + absl::Milliseconds(20)),
      StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("cannot resolve dns://127.0.0.1")));
}

TEST(DnsResolverTest, StopEndsAQuestion) {
  const NameServer silent({}, {});
  const std::unique_ptr<NameResolver> resolver = MakeDnsResolver();
  std::thread stop([&] { resolver->Stop(); });
  EXPECT_THAT(resolver->Resolve(silent.target(), absl::InfiniteFuture()),
              StatusIs(absl::StatusCode::kCancelled));
  stop.join();
  EXPECT_THAT(resolver->Resolve(silent.target(), absl::InfiniteFuture()),
              StatusIs(absl::StatusCode::kCancelled));
}

}  // namespace
}  // namespace conclave
