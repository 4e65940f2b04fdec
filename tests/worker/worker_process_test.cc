// conclave-worker as a process: what a probe is told while it drains.

#include <signal.h>

#include <nlohmann/json.hpp>
#include <string>

#include "proto/conclave/v1/worker.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/server_runner.h"
#include "tests/support/child_process.h"
#include "tests/support/raw_call.h"
#include "tests/support/test_worker.h"

namespace conclave {
namespace {

using testing::HasSubstr;

TEST(WorkerProcessTest, WhileItDrainsItIsAliveAndNotReady) {
  TempDir dir;
  ASSERT_OK(WriteSyntheticCheckpoint(TinyDenseConfig(), dir.path() + "/dense"));
  ChildProcess worker("conclave-worker", dir.File("stderr"),
                      {"--model", dir.path() + "/dense", "--listen", "127.0.0.1:0", "--threads",
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
  worker.Signal(SIGTERM);
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
