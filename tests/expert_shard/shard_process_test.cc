#include <signal.h>

#include <fstream>
#include <sstream>

#include "rpc/channel.h"
#include "tests/support/child_process.h"
#include "tests/support/test_shard.h"

namespace conclave {
namespace {

using testing::HasSubstr;

class ShardProcess : public ChildProcess {
 public:
  ShardProcess(const std::string& stderr_path, const std::vector<std::string>& args)
      : ChildProcess("conclave-expert-shard", stderr_path, args) {}
};

class ShardProcessTest : public testing::Test {
 protected:
  std::vector<std::string> Args(std::vector<std::string> more) const {
    std::vector<std::string> args = {"--model", model_.dir(), "--threads", "1"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  std::string stderr_path() const { return model_.dir() + ".stderr"; }
  std::string Stderr() const {
    std::ifstream file(stderr_path());
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  absl::StatusOr<v1::ShardDescription> Describe(const std::string& target) const {
    grpc::ClientContext context;
    v1::ShardDescription description;
    const grpc::Status status =
        v1::ExpertShard::NewStub(MakeChannel(target))->Describe(&context, {}, &description);
    if (!status.ok()) return absl::UnavailableError(status.error_message());
    return description;
  }

  TestModel model_{TinyMoeConfig()};
};

TEST_F(ShardProcessTest, AnnouncesServesAndDrains) {
  ShardProcess shard(stderr_path(),
                     Args({"--listen", "127.0.0.1:0", "--shard_index", "1", "--num_shards", "3"}));
  const nlohmann::json listening = shard.NextLine();
  ASSERT_EQ(listening.value("event", ""), "listening") << Stderr();
  ASSERT_EQ(shard.NextLine().value("event", ""), "ready") << Stderr();
  ASSERT_OK_AND_ASSIGN(const v1::ShardDescription description,
                       Describe(listening["grpc"].get<std::string>()));
  EXPECT_TRUE(description.ready());
  EXPECT_EQ(description.model().fingerprint(), model_.fingerprint());
  EXPECT_THAT(description.expert_ids(), testing::ElementsAre(3, 4, 5));
  EXPECT_NE(description.placement_epoch(), 0u);
  EXPECT_NE(listening["metrics"].get<std::string>(), "127.0.0.1:0");
  shard.Signal(SIGTERM);
  EXPECT_TRUE(shard.NextLine().is_null()) << "something else on stdout";
  EXPECT_EQ(shard.Wait(), 0) << Stderr();
}

TEST_F(ShardProcessTest, EveryStartHasAnEpochOfItsOwn) {
  std::vector<uint64_t> epochs;
  for (int start = 0; start < 2; ++start) {
    ShardProcess shard(stderr_path(), Args({"--listen", "127.0.0.1:0", "--experts", "0-2,7"}));
    const nlohmann::json listening = shard.NextLine();
    ASSERT_EQ(shard.NextLine().value("event", ""), "ready") << Stderr();
    ASSERT_OK_AND_ASSIGN(const v1::ShardDescription description,
                         Describe(listening["grpc"].get<std::string>()));
    EXPECT_THAT(description.expert_ids(), testing::ElementsAre(0, 1, 2, 7));
    epochs.push_back(description.placement_epoch());
    shard.Signal(SIGINT);
    EXPECT_EQ(shard.Wait(), 0);
  }
  EXPECT_NE(epochs[0], epochs[1]);
}

TEST_F(ShardProcessTest, StartErrorsAreOneLineAndAStatus) {
  TestShard other(model_, {0});
  const std::string bad_model = model_.dir() + "-missing";
  const struct {
    int status;  // 2: the flags alone are wrong
    std::vector<std::string> args;
    std::string message;
  } cases[] = {
      {1, Args({"--listen", other.target(), "--experts", "0"}), other.target()},
      {1, Args({"--experts", "8"}), "8"},
      {2, Args({"--experts", "0", "--num_shards", "2"}), "either --experts or both"},
      {2, Args({}), "either --experts or both"},
      {2, Args({"--shard_index", "3", "--num_shards", "3"}), "--shard_index is 3, want 0..2"},
      {2, Args({"--shard_index", "0"}), "--num_shards is 0, want 1 or more"},
      {2, Args({"--experts", "5-2"}), "--experts: expert range is \"5-2\", want first <= last"},
      {2, Args({"--experts", "0", "--device", "tpu"}), "--device: device is \"tpu\""},
      {2, Args({"--experts", "0", "--cpus", "x"}), "--cpus or --numa_node: cpu id is \"x\""},
      {2, Args({"--experts", "0", "--tls_cert_file", "c"}), "both --tls_cert_file"},
      {1, Args({"--shard_index", "0", "--num_shards", "9"}), "--num_shards is 9, want 1..8"},
      {2, Args({"--experts", "0", "--cpu_isa", "mmx"}), "mmx"},
      {2, Args({"--experts", "0", "--log_level", "loud"}), "loud"},
      {2, Args({"--experts", "0", "--metrics_listen", "here"}), "here"},
      {2, Args({"--experts", "0", "--drain_seconds", "-1"}), "--drain_seconds: Value -1"},
      {2, Args({"--experts", "0", "--load_format", "zero"}), "--load_format: zero not in"},
      {2, Args({"--experts", "0", "--load_format", "dummy"}), "needs --device=cuda"},
      {2, Args({"--experts", "0", "--deterministic", "false"}),
       "--deterministic on the CPU is false"},
      {2, Args({"--experts", "0", "--device", "cuda", "--gpu_memory_utilization", "1.5"}), "1.5"},
      {2, Args({"--experts", "0", "--device", "cuda", "--weight_dtype", "int8"}), "int8"},
      // Without a build for GPUs, without a GPU, or without that one.
      {1, Args({"--listen", "127.0.0.1:0", "--experts", "0", "--device", "cuda:99"}), "CUDA"},
      {1, {"--model", bad_model, "--experts", "0"}, bad_model},
  };
  for (const auto& start : cases) {
    ShardProcess shard(stderr_path(), start.args);
    EXPECT_EQ(shard.Wait(), start.status) << Stderr();
    EXPECT_THAT(Stderr(), HasSubstr(start.message));
  }
}

TEST_F(ShardProcessTest, ADamagedCheckpointIsNamed) {
  std::filesystem::resize_file(model_.dir() + "/model.safetensors", 5000);
  ShardProcess shard(stderr_path(), Args({"--listen", "127.0.0.1:0", "--experts", "0"}));
  EXPECT_EQ(shard.NextLine().value("event", ""), "listening");
  EXPECT_TRUE(shard.NextLine().is_null());
  EXPECT_EQ(shard.Wait(), 1);
  EXPECT_THAT(Stderr(), HasSubstr("model.safetensors"));
}

}  // namespace
}  // namespace conclave
