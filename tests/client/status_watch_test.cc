#include "client/status_watch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <sstream>

#include "tests/client/fake_services.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

v1::ClusterStatus Cluster(double tokens_per_second, uint64_t thinking, uint64_t answer) {
  v1::ClusterStatus cluster;
  cluster.set_serving(true);
  cluster.mutable_router()->set_waiting(1);
  cluster.mutable_router()->set_uptime_seconds(60);
  cluster.mutable_router()->set_thinking_tokens(thinking);
  cluster.mutable_router()->set_answer_tokens(answer);
  for (int i = 0; i < 2; ++i) {
    auto* worker = cluster.add_workers();
    worker->set_target("w");
    worker->set_up(true);
    v1::WorkerDescription* description = worker->mutable_description();
    description->set_ready(i == 0);
    description->set_running(3);
    description->set_waiting(2);
    description->set_kv_blocks_total(100);
    description->set_kv_blocks_used(40 + 20 * i);
    description->set_tokens_per_second(tokens_per_second);
    description->add_shards()->set_up(true);
    description->add_shards()->set_up(false);
  }
  cluster.add_workers()->set_error("refused");
  return cluster;
}

TEST(FormatWatchTest, AddsUpTheWorkers) {
  WatchHistory history;
  const std::string text = FormatWatch("r:1", Cluster(50, 0, 0), &history);
  EXPECT_THAT(text, AllOf(HasSubstr("serving, up 60 s; 1 of 3 workers ready, 1 of 2 shards up"),
                          HasSubstr("requests  6 running, 5 waiting\n"),
                          HasSubstr("[##############################] 100.0, at most 100.0"),
                          HasSubstr("KV cache  [###############---------------] 50 %, 100 of 200"),
                          HasSubstr("PROCESS")));
  EXPECT_THAT(FormatWatch("r:1", Cluster(25, 0, 0), &history),
              HasSubstr("[###############---------------] 50.0, at most 100.0"));
}

TEST(FormatWatchTest, ThinkingIsOfWhatFinishedSinceTheLastLook) {
  WatchHistory history;
  EXPECT_THAT(FormatWatch("r", Cluster(1, 30, 70), &history),
              HasSubstr("30 % of the tokens of requests that finished since the start"));
  EXPECT_THAT(FormatWatch("r", Cluster(1, 90, 90), &history),
              HasSubstr("75 % of the tokens of requests that finished in the last second"));
  EXPECT_THAT(FormatWatch("r", Cluster(1, 90, 90), &history), HasSubstr("50 % of the tokens"))
      << "nothing finished";
  EXPECT_THAT(FormatWatch("r", Cluster(1, 10, 10), &history), HasSubstr("since the start"))
      << "another router";
}

TEST(WatchStatusTest, DrawsUntilStopped) {
  FakeRouter router;
  std::atomic<int> looks = 0;
  router.on_cluster = [&](v1::ClusterStatus* status) {
    if (++looks == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "starting");
    *status = Cluster(1, 0, 0);
    status->mutable_model()->set_name("demo\x1b[2J");
    return grpc::Status::OK;
  };
  LoopbackServer server(&router);
  std::ostringstream out;
  ASSERT_OK(WatchStatus(
      server.target(), out, [&] { return looks >= 3; }, [] { return 50; }, absl::Milliseconds(1)));
  EXPECT_THAT(out.str(), AllOf(StartsWith("\x1b[?1049h"), HasSubstr("no answer (starting)"),
                               HasSubstr("6 running"), EndsWith("\x1b[?1049l")));
  EXPECT_THAT(out.str(), testing::Not(HasSubstr("\x1b[2J"))) << "of a model's name";
}

TEST(WatchStatusTest, AShortTerminalKeepsTheBeginning) {
  FakeRouter router;
  std::atomic<int> looks = 0;
  router.on_cluster = [&](v1::ClusterStatus* status) {
    ++looks;
    *status = Cluster(1, 0, 0);
    return grpc::Status::OK;
  };
  LoopbackServer server(&router);
  for (const int rows : {1, 4, 8, 15, 50}) {
    looks = 0;
    std::ostringstream out;
    ASSERT_OK(WatchStatus(
        server.target(), out, [&] { return looks >= 1; }, [rows] { return rows; },
        absl::Milliseconds(1)));
    const std::string text = out.str();
    EXPECT_THAT(text, AllOf(HasSubstr("1 of 3 workers ready"), HasSubstr("Ctrl-C ends this")));
    // The last line of the terminal stays free, or the first would scroll away.
    EXPECT_LT(std::count(text.begin(), text.end(), '\n'), std::max(rows, 3)) << rows;
    EXPECT_EQ(text.find("more lines") == std::string::npos, rows == 50) << text;
  }
}

}  // namespace
}  // namespace conclave
