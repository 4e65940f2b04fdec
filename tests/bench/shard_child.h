#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "expert_shard/expert_service.h"
#include "model/expert_placement.h"
#include "model/fingerprint.h"
#include "rpc/server_runner.h"

namespace conclave {

template <typename T>
T ValueOrDie(absl::StatusOr<T> value) {
  CHECK(value.ok()) << value.status();
  return *std::move(value);
}

// A child process that ends with this one. Forked before gRPC is used: it starts threads.
class Child {
 public:
  explicit Child(const std::function<void(int fd)>& body) {
    int fds[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    fflush(stdout);
    pid_ = fork();
    CHECK_GE(pid_, 0);
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      close(fds[0]);
      body(fds[1]);
      _exit(0);
    }
    close(fds[1]);
    fd_ = fds[0];
  }
  ~Child() {
    close(fd_);
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  int fd() const { return fd_; }

 private:
  pid_t pid_ = 0;
  int fd_ = -1;
};

inline void ReadAll(int fd, char* data, size_t bytes) {
  while (bytes > 0) {
    const ssize_t got = read(fd, data, bytes);
    if (got <= 0) _exit(0);
    data += got;
    bytes -= static_cast<size_t>(got);
  }
}

inline void WriteAll(int fd, const char* data, size_t bytes) {
  while (bytes > 0) {
    const ssize_t put = write(fd, data, bytes);
    if (put <= 0) _exit(0);
    data += put;
    bytes -= static_cast<size_t>(put);
  }
}

// A whole shard; tells its address through `fd` and serves until it is killed.
inline void RunShard(const std::string& model, const Qwen3Config& config, int threads,
                     int num_shards, int shard, int fd) {
  const auto checkpoint = ValueOrDie(Checkpoint::Open(model));
  ThreadPool pool(threads);
  const std::vector<int> experts = ExpertsOfShard(config.num_experts, num_shards, shard);
  const auto runner = ValueOrDie(ExpertRunner::Load(*checkpoint, config, experts,
                                                    WeightDtype::kBf16, {DetectCpuIsa(), &pool}));
  Metrics registry;
  ShardMetrics metrics(&registry, config);
  TokenBatcher batcher(runner.get(), &metrics);
  ExpertService service(&metrics);
  ServerOptions server_options;
  server_options.listen = "127.0.0.1:0";
  server_options.services = {&service};
  server_options.traffic = Traffic::kTensors;
  const auto server = ValueOrDie(ServerRunner::Start(server_options));
  service.Activate(MakeShardDescription("bench", config,
                                        ValueOrDie(Fingerprint(*checkpoint, config)), *runner, 1),
                   DispatchRules(config, experts, 1), &batcher);
  std::string address = server->address();
  address.resize(64, '\0');
  WriteAll(fd, address.data(), address.size());
  char byte;
  ReadAll(fd, &byte, 1);  // until the bench ends
}

// What RunShard told.
inline std::string ReadAddress(int fd) {
  std::string address(64, '\0');
  ReadAll(fd, address.data(), address.size());
  return address.c_str();
}

}  // namespace conclave
