// conclave-worker as a process: what a probe is told while it drains.

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "proto/conclave/v1/worker.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/server_runner.h"
#include "tests/support/raw_call.h"
#include "tests/support/test_worker.h"

namespace conclave {
namespace {

using testing::HasSubstr;

class WorkerProcess {
 public:
  explicit WorkerProcess(std::vector<std::string> args) {
    args.insert(args.begin(), CONCLAVE_BIN_DIR "/conclave-worker");
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    int out[2];
    CHECK_EQ(pipe(out), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, out[0]);
    CHECK_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    stdout_ = fdopen(out[0], "r");
  }
  ~WorkerProcess() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      Wait();
    }
    std::fclose(stdout_);
  }

  // The next line of stdout as JSON; null at its end.
  nlohmann::json NextLine() {
    char line[4096];
    if (std::fgets(line, sizeof(line), stdout_) == nullptr) return nullptr;
    return nlohmann::json::parse(line, nullptr, false);
  }
  void Terminate() { kill(pid_, SIGTERM); }
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
  FILE* stdout_ = nullptr;
};

TEST(WorkerProcessTest, WhileItDrainsItIsAliveAndNotReady) {
  TempDir dir;
  ASSERT_OK(WriteSyntheticCheckpoint(TinyDenseConfig(), dir.path() + "/dense"));
  WorkerProcess worker({"--model", dir.path() + "/dense", "--listen", "127.0.0.1:0", "--threads",
                        "1", "--kv_cache_tokens", "8192", "--drain_seconds", "600"});
  const nlohmann::json listening = worker.NextLine();
  ASSERT_EQ(listening.value("event", ""), "listening");
  ASSERT_EQ(worker.NextLine().value("event", ""), "ready");
  // A connection for each question, as a probe makes: a port that is gone answers none.
  const std::string target = listening["grpc"].get<std::string>();
  EXPECT_EQ(Health(MakeChannel(target)), kServing);
  EXPECT_EQ(Health(MakeChannel(target), kLivenessService), kServing);

  const auto stub = v1::Worker::NewStub(MakeChannel(target));
  grpc::ClientContext context;
  const auto running = stub->Generate(&context, MakeRequest("running", 3, 4000));
  v1::TokenEvent event;
  ASSERT_TRUE(running->Read(&event));
  worker.Terminate();
  const absl::Time give_up = absl::Now() + absl::Seconds(60);
  while (Health(MakeChannel(target)) != kNotServing && absl::Now() < give_up) continue;
  EXPECT_EQ(Health(MakeChannel(target)), kNotServing);
  EXPECT_EQ(Health(MakeChannel(target), kLivenessService), kServing);
  grpc::ClientContext describing;
  v1::WorkerDescription description;
  ASSERT_TRUE(
      v1::Worker::NewStub(MakeChannel(target))->Describe(&describing, {}, &description).ok());
  EXPECT_FALSE(description.ready());
  EXPECT_THAT(description.reason(), HasSubstr("drain"));
  EXPECT_EQ(description.running(), 1u);
  grpc::ClientContext late;
  EXPECT_EQ(stub->Generate(&late, MakeRequest("late", 3, 5))->Finish().error_code(),
            grpc::StatusCode::UNAVAILABLE);

  context.TryCancel();
  EXPECT_EQ(running->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(worker.Wait(), 0);
}

}  // namespace
}  // namespace conclave
