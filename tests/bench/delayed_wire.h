#pragma once

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "rpc/address.h"

namespace conclave {

// A TCP port in front of another: each byte arrives `delay` later, whatever else is on its way, as
// on a long wire and unlike behind a slow peer. Lives until the process ends: its threads are
// detached.
class DelayedWire {
 public:
  // `target` is an IPv4 host:port. Aborts on any error of the system.
  static std::string To(const std::string& target, absl::Duration delay) {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = AddressOf("127.0.0.1", 0);
    CHECK_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    CHECK_EQ(listen(listener, 16), 0);
    socklen_t length = sizeof(address);
    CHECK_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length), 0);
    std::thread([listener, target, delay] {
      for (;;) {
        const int near = accept(listener, nullptr, nullptr);
        CHECK_GE(near, 0);
        SendAtOnce(near);
        const int far = Connect(target);
        for (const auto& [from, to] : {std::pair(near, far), std::pair(far, near)}) {
          auto wire = std::make_shared<Direction>();
          std::thread([wire, from = from, delay] { wire->Take(from, delay); }).detach();
          std::thread([wire, to = to] { wire->Deliver(to); }).detach();
        }
      }
    }).detach();
    return absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  }

 private:
  // What is on its way in one direction.
  class Direction {
   public:
    void Take(int from, absl::Duration delay) {
      for (;;) {
        std::vector<char> bytes(1 << 18);
        const ssize_t got = read(from, bytes.data(), bytes.size());
        bytes.resize(got > 0 ? static_cast<size_t>(got) : 0);
        absl::MutexLock lock(&mutex_);
        under_way_.emplace_back(absl::Now() + delay, std::move(bytes));
        if (got <= 0) return;
      }
    }
    void Deliver(int to) {
      for (;;) {
        std::pair<absl::Time, std::vector<char>> next;
        {
          absl::MutexLock lock(&mutex_);
          const auto any = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
            return !under_way_.empty();
          };
          mutex_.Await(absl::Condition(&any));
          next = std::move(under_way_.front());
          under_way_.pop_front();
        }
        absl::SleepFor(next.first - absl::Now());
        if (next.second.empty()) {
          shutdown(to, SHUT_WR);
          return;
        }
        for (size_t sent = 0; sent < next.second.size();) {
          const ssize_t put =
              send(to, next.second.data() + sent, next.second.size() - sent, MSG_NOSIGNAL);
          if (put <= 0) return;
          sent += static_cast<size_t>(put);
        }
      }
    }

   private:
    absl::Mutex mutex_;
    std::deque<std::pair<absl::Time, std::vector<char>>> under_way_ ABSL_GUARDED_BY(mutex_);
  };

  static sockaddr_in AddressOf(const std::string& host, int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    CHECK_EQ(inet_pton(AF_INET, host.c_str(), &address.sin_addr), 1) << host;
    return address;
  }
  static int Connect(const std::string& target) {
    const size_t colon = target.rfind(':');
    const sockaddr_in address =
        AddressOf(target.substr(0, colon), std::stoi(target.substr(colon + 1)));
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    SendAtOnce(fd);
    return fd;
  }
  static void SendAtOnce(int fd) {
    const int on = 1;
    CHECK_EQ(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)), 0);
  }
};

}  // namespace conclave
