#include "rpc/name_resolver.h"

#include <ares.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/check.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "rpc/address.h"

namespace conclave {
namespace {

constexpr absl::string_view kScheme = "dns:";
// A name server that does not answer for so long is asked again, or the next one is.
constexpr int kServerTimeoutMs = 1000;

// What c-ares has found for one question.
struct Answer {
  bool done = false;
  int status = ARES_SUCCESS;
  int port = 0;
  std::vector<std::string> ipv4, ipv6;

  static void Take(void* self, int status, int /*timeouts*/, ares_addrinfo* found) {
    auto* answer = static_cast<Answer*>(self);
    answer->done = true;
    answer->status = status;
    if (found == nullptr) return;
    char text[INET6_ADDRSTRLEN];
    for (const ares_addrinfo_node* node = found->nodes; node != nullptr; node = node->ai_next) {
      const bool is_ipv6 = node->ai_family == AF_INET6;
      if (!is_ipv6 && node->ai_family != AF_INET) continue;
      const void* address =
          is_ipv6 ? static_cast<const void*>(
                        &reinterpret_cast<const sockaddr_in6*>(node->ai_addr)->sin6_addr)
                  : &reinterpret_cast<const sockaddr_in*>(node->ai_addr)->sin_addr;
      if (inet_ntop(node->ai_family, address, text, sizeof(text)) == nullptr) continue;
      (is_ipv6 ? answer->ipv6 : answer->ipv4).push_back(FormatHostPort(text, answer->port));
    }
    ares_freeaddrinfo(found);
  }
};

absl::Status ToStatus(const std::string& target, int status) {
  const std::string text = absl::StrCat("cannot resolve ", target, ": ", ares_strerror(status));
  switch (status) {
    case ARES_ENOTFOUND:
    case ARES_ENODATA:
      return absl::NotFoundError(text);
    case ARES_EBADNAME:
      return absl::InvalidArgumentError(text);
    default:
      return absl::UnavailableError(text);
  }
}

class DnsResolver final : public NameResolver {
 public:
  DnsResolver() : stop_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) { CHECK_GE(stop_fd_, 0); }
  ~DnsResolver() override { close(stop_fd_); }

  absl::StatusOr<std::vector<std::string>> Resolve(const std::string& target,
                                                   absl::Time deadline) override {
    ASSIGN_OR_RETURN(const DnsTarget dns, ParseDnsTarget(target));
    ares_options options = {};
    options.timeout = kServerTimeoutMs;
    ares_channel channel = nullptr;
    int status = ares_init_options(&channel, &options, ARES_OPT_TIMEOUTMS);
    if (status != ARES_SUCCESS) return ToStatus(target, status);
    Answer answer;  // outlives the channel, which may still answer as it goes
    absl::Cleanup destroy = [channel] { ares_destroy(channel); };
    answer.port = dns.port;
    if (!dns.server.empty()) {
      status = ares_set_servers_ports_csv(channel, dns.server.c_str());
      if (status != ARES_SUCCESS) return ToStatus(target, status);
    }
    ares_addrinfo_hints hints = {};
    hints.ai_family = AF_UNSPEC;
    hints.ai_flags = ARES_AI_NOSORT;
    ares_getaddrinfo(channel, dns.name.c_str(), nullptr, &hints, &Answer::Take, &answer);
    RETURN_IF_ERROR(Drive(channel, answer, target, deadline));
    if (answer.status != ARES_SUCCESS) return ToStatus(target, answer.status);
    std::vector<std::string>& addresses = answer.ipv4.empty() ? answer.ipv6 : answer.ipv4;
    std::sort(addresses.begin(), addresses.end());
    addresses.erase(std::unique(addresses.begin(), addresses.end()), addresses.end());
    if (addresses.empty()) return ToStatus(target, ARES_ENODATA);
    return std::move(addresses);
  }

  void Stop() override {
    const uint64_t one = 1;
    CHECK_EQ(write(stop_fd_, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
  }

 private:
  // Moves bytes between c-ares and its sockets until there is an answer.
  absl::Status Drive(ares_channel channel, const Answer& answer, const std::string& target,
                     absl::Time deadline) const {
    while (!answer.done) {
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) {
        return absl::DeadlineExceededError(
            absl::StrCat("cannot resolve ", target, ": no answer in time"));
      }
      ares_socket_t sockets[ARES_GETSOCK_MAXNUM];
      const int wanted = ares_getsock(channel, sockets, ARES_GETSOCK_MAXNUM);
      std::vector<pollfd> polled = {{stop_fd_, POLLIN, 0}};
      for (int i = 0; i < ARES_GETSOCK_MAXNUM; ++i) {
        const bool reads = ARES_GETSOCK_READABLE(wanted, i);
        const bool writes = ARES_GETSOCK_WRITABLE(wanted, i);
        if (!reads && !writes) continue;
        polled.push_back(
            {sockets[i], static_cast<int16_t>((reads ? POLLIN : 0) | (writes ? POLLOUT : 0)), 0});
      }
      timeval most = absl::ToTimeval(left), wait = {};
      const timeval* chosen = ares_timeout(channel, &most, &wait);
      const int64_t wait_ms = absl::ToInt64Milliseconds(absl::DurationFromTimeval(*chosen)) + 1;
      poll(polled.data(), polled.size(), static_cast<int>(wait_ms));
      if (polled[0].revents != 0) return absl::CancelledError("the resolver stops");
      ares_process_fd(channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);  // what has timed out
      for (size_t i = 1; i < polled.size(); ++i) {
        if (polled[i].revents == 0) continue;
        const bool writable = (polled[i].revents & POLLOUT) != 0;
        const bool readable = (polled[i].revents & ~POLLOUT) != 0;
        ares_process_fd(channel, readable ? polled[i].fd : ARES_SOCKET_BAD,
                        writable ? polled[i].fd : ARES_SOCKET_BAD);
      }
    }
    return absl::OkStatus();
  }

  const int stop_fd_;  // readable for ever once stopped
};

}  // namespace

bool IsDnsTarget(absl::string_view target) { return absl::StartsWith(target, kScheme); }

absl::StatusOr<DnsTarget> ParseDnsTarget(absl::string_view target) {
  DnsTarget parsed;
  absl::string_view rest = absl::StripPrefix(target, kScheme);
  if (absl::ConsumePrefix(&rest, "//")) {
    const size_t slash = rest.find('/');
    if (slash == absl::string_view::npos) rest = "";  // no name
    parsed.server = std::string(rest.substr(0, slash));
    if (!rest.empty()) rest.remove_prefix(slash + 1);
  }
  const absl::StatusOr<HostPort> name = ParseHostPort(rest);
  if (!IsDnsTarget(target) || !name.ok() || name->port == 0) {
    return errors::OutOfRange("target", absl::StrCat("\"", target, "\""),
                              "dns:///NAME:PORT or dns://SERVER/NAME:PORT");
  }
  parsed.name = name->host;
  parsed.port = name->port;
  return parsed;
}

absl::Status CheckPeerTarget(absl::string_view target) {
  if (target.empty()) return absl::InvalidArgumentError("a target is empty");
  return IsDnsTarget(target) ? ParseDnsTarget(target).status() : absl::OkStatus();
}

std::unique_ptr<NameResolver> MakeDnsResolver() { return std::make_unique<DnsResolver>(); }

}  // namespace conclave
