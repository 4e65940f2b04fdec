#include "client/up_command.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "model/synthetic.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string Flag(const ProcessSpec& spec, const std::string& flag) {
  const auto found = std::find(spec.argv.begin(), spec.argv.end(), flag);
  return found == spec.argv.end() ? "" : *(found + 1);
}

TEST(DivideThreadsTest, WorkersAndShardsTakeTurnsAtTheSameCores) {
  const auto divide = [](int threads, int workers) {
    const ThreadShare share = DivideThreads(threads, workers);
    return std::pair(share.worker, share.shard);
  };
  EXPECT_EQ(divide(8, 1), std::pair(8, 8));
  EXPECT_EQ(divide(8, 2), std::pair(4, 8));
  EXPECT_EQ(divide(2, 3), std::pair(1, 2));
  EXPECT_EQ(divide(7, 2), std::pair(3, 7));
}

TEST(PlanProcessesTest, TiersComeBottomUpWithTheirFlags) {
  UpOptions options;
  options.model = "/models/m";
  options.bin_dir = "/bin";
  options.workers = 2;
  options.shards = 2;
  options.threads = 4;
  options.shared_memory = "off";
  options.micro_batch = "on";
  options.expert_transport = "grpc";
  options.host = "0.0.0.0";
  options.grpc_port = 1234;
  options.http_port = 1235;
  options.kv_cache_tokens = 4096;
  options.weight_dtype = "int8";
  options.numa_nodes = {0, 1};
  ASSERT_OK_AND_ASSIGN(const std::vector<ProcessTier> tiers,
                       PlanProcesses(options, TinyMoeConfig()));
  ASSERT_EQ(tiers.size(), 3u);
  EXPECT_EQ(tiers[0].targets_flag, "");
  EXPECT_EQ(tiers[1].targets_flag, "--shards");
  EXPECT_EQ(tiers[2].targets_flag, "--workers");
  ASSERT_EQ(tiers[0].processes.size(), 2u);
  const ProcessSpec& shard = tiers[0].processes[1];
  EXPECT_EQ(shard.name, "shard-1");
  EXPECT_EQ(shard.argv[0], "/bin/conclave-expert-shard");
  EXPECT_EQ(Flag(shard, "--model"), "/models/m");
  EXPECT_EQ(Flag(shard, "--shard_index"), "1");
  EXPECT_EQ(Flag(shard, "--num_shards"), "2");
  EXPECT_EQ(Flag(shard, "--threads"), "4");
  EXPECT_EQ(Flag(shard, "--shared_memory"), "off");
  EXPECT_EQ(Flag(shard, "--expert_transport"), "grpc");
  EXPECT_EQ(Flag(shard, "--weight_dtype"), "int8");
  EXPECT_EQ(Flag(shard, "--numa_node"), "1");
  ASSERT_EQ(tiers[1].processes.size(), 2u);
  const ProcessSpec& worker = tiers[1].processes[0];
  EXPECT_EQ(worker.argv[0], "/bin/conclave-worker");
  EXPECT_EQ(Flag(worker, "--threads"), "2");
  EXPECT_EQ(Flag(worker, "--shared_memory"), "off");
  EXPECT_EQ(Flag(worker, "--micro_batch"), "on");
  EXPECT_EQ(Flag(worker, "--expert_transport"), "grpc");
  EXPECT_EQ(Flag(worker, "--weight_dtype"), "int8");
  EXPECT_EQ(Flag(worker, "--numa_node"), "0");
  EXPECT_EQ(Flag(worker, "--kv_cache_tokens"), "4096");
  EXPECT_EQ(worker.host, "127.0.0.1");
  EXPECT_EQ(worker.http_flag, "--metrics_listen");
  ASSERT_EQ(tiers[2].processes.size(), 1u);
  const ProcessSpec& router = tiers[2].processes[0];
  EXPECT_EQ(router.argv[0], "/bin/conclave-router");
  EXPECT_EQ(router.host, "0.0.0.0");
  EXPECT_EQ(router.grpc_port, 1234);
  EXPECT_EQ(router.http_flag, "--http_listen");
  EXPECT_EQ(router.http_port, 1235);
  EXPECT_EQ(Flag(router, "--chat_template"), "auto");
  EXPECT_EQ(Flag(router, "--model_name"), "");
}

TEST(PlanProcessesTest, WithoutShardsWorkersHoldTheExperts) {
  UpOptions options;
  for (const Qwen3Config& config : {TinyMoeConfig(), TinyDenseConfig()}) {
    ASSERT_OK_AND_ASSIGN(const std::vector<ProcessTier> tiers, PlanProcesses(options, config));
    ASSERT_EQ(tiers.size(), 2u);
    EXPECT_EQ(tiers[0].targets_flag, "");
    EXPECT_EQ(Flag(tiers[0].processes[0], "--kv_cache_tokens"), "") << "left to the worker";
    EXPECT_EQ(Flag(tiers[0].processes[0], "--numa_node"), "") << "any";
  }
}

TEST(PlanProcessesTest, SwitchesOffWhatIsOnByDefault) {
  UpOptions options;
  for (const bool on : {true, false}) {
    options.prefix_cache = options.prefill_ahead = on;
    ASSERT_OK_AND_ASSIGN(const std::vector<ProcessTier> tiers,
                         PlanProcesses(options, TinyMoeConfig()));
    EXPECT_EQ(Flag(tiers[0].processes[0], "--prefix_cache"), on ? "" : "false");
    EXPECT_EQ(Flag(tiers[1].processes[0], "--prefill_ahead"), on ? "" : "false");
  }
}

TEST(PlanProcessesTest, RefusesShardsWithoutExperts) {
  UpOptions options;
  options.shards = 1;
  EXPECT_THAT(PlanProcesses(options, TinyDenseConfig()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("dense model")));
  options.shards = 9;
  EXPECT_THAT(PlanProcesses(options, TinyMoeConfig()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("shards is 9, want 0..8")));
}

TEST(RestartBackoffTest, DoublesUpToTenSeconds) {
  std::vector<double> seconds;
  for (int failures : {1, 2, 3, 4, 5, 6, 7, 1000}) {
    seconds.push_back(absl::ToDoubleSeconds(RestartBackoff(failures)));
  }
  EXPECT_THAT(seconds, ElementsAre(0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10));
}

TEST(CheckPortIsFreeTest, TellsATakenPort) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  const int port = ntohs(address.sin_port);
  EXPECT_THAT(
      CheckPortIsFree("127.0.0.1", port),
      StatusIs(absl::StatusCode::kUnavailable, HasSubstr("127.0.0.1:" + std::to_string(port))));
  close(fd);
  EXPECT_OK(CheckPortIsFree("127.0.0.1", port));
  EXPECT_OK(CheckPortIsFree("127.0.0.1", 0));
  EXPECT_THAT(CheckPortIsFree("not a host", 1), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace conclave
