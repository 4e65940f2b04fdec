#include "client/status_command.h"

#include <gtest/gtest.h>

#include <atomic>
#include <sstream>

#include "nlohmann/json.hpp"
#include "tests/client/fake_services.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

v1::ClusterStatus Cluster() {
  v1::ClusterStatus cluster;
  cluster.set_serving(true);
  cluster.mutable_router()->set_inflight(2);
  cluster.mutable_router()->set_uptime_seconds(61.2);
  cluster.mutable_model()->set_name("demo");
  cluster.mutable_model()->set_architecture("Qwen3MoeForCausalLM");
  cluster.mutable_model()->set_num_hidden_layers(6);
  cluster.mutable_model()->set_num_experts(8);
  cluster.mutable_model()->set_num_experts_per_tok(2);
  cluster.mutable_model()->set_max_context(1024);
  auto* worker = cluster.add_workers();
  worker->set_target("127.0.0.1:1");
  worker->set_up(true);
  v1::WorkerDescription* description = worker->mutable_description();
  description->set_ready(true);
  description->set_running(3);
  description->set_waiting(4);
  description->set_kv_blocks_total(100);
  description->set_kv_blocks_used(7);
  description->set_tokens_per_second(12.34);
  v1::ShardState* shard = description->add_shards();
  shard->set_target("127.0.0.1:3");
  shard->set_up(true);
  for (const uint32_t id : {0, 1, 2, 5, 7, 8}) shard->add_expert_ids(id);
  shard->set_rows_sent(99);
  shard->set_retries(1);
  shard->set_transport("shared_memory");
  auto* lost = cluster.add_workers();
  lost->set_target("127.0.0.1:22222");
  lost->set_error("connection refused");
  auto* loading = cluster.add_workers();
  loading->set_target("127.0.0.1:4");
  loading->set_error("loading weights");
  loading->mutable_description()->set_reason("loading weights");
  auto* other = cluster.add_workers();
  other->set_target("127.0.0.1:5");
  other->set_error("loaded another model: fingerprint is f2, want f1");
  other->mutable_description()->set_ready(true);
  other->mutable_description()->mutable_model()->set_fingerprint("f2");
  return cluster;
}

TEST(FormatExpertIdsTest, JoinsRuns) {
  v1::ShardState shard;
  EXPECT_EQ(FormatExpertIds(shard.expert_ids()), "-");
  for (const uint32_t id : {0, 1, 2, 5, 7, 8}) shard.add_expert_ids(id);
  EXPECT_EQ(FormatExpertIds(shard.expert_ids()), "0-2,5,7-8");
}

TEST(FormatClusterTest, GivesEachProcessALine) {
  EXPECT_EQ(FormatCluster("127.0.0.1:9", Cluster()),
            "model demo: Qwen3MoeForCausalLM, 6 layers, 8 experts (2 per token), context 1024 "
            "tokens\n"
            "PROCESS  TARGET           STATE      LOAD\n"
            "router   127.0.0.1:9      serving    2 in flight, 0 waiting, up 61 s\n"
            "worker   127.0.0.1:1      ready      3 running, 4 waiting, 7 of 100 KV blocks, 12.3 "
            "tokens/s\n"
            "  shard  127.0.0.1:3      up         experts 0-2,5,7-8, 99 rows sent, 1 retries, by "
            "shared_memory\n"
            "worker   127.0.0.1:22222  down       connection refused\n"
            "worker   127.0.0.1:4      not ready  loading weights\n"
            "worker   127.0.0.1:5      not ready  loaded another model: fingerprint is f2, want "
            "f1\n");
}

class RunStatusTest : public testing::Test {
 protected:
  RunStatusTest() { options_.router.endpoint = server_.target(); }

  FakeRouter router_;
  LoopbackServer server_{&router_};
  StatusCommandOptions options_;
  std::ostringstream out_;
};

TEST_F(RunStatusTest, IsOkOnlyIfTheClusterServes) {
  bool serving = true;
  router_.on_cluster = [&](v1::ClusterStatus* status) {
    *status = Cluster();
    status->set_serving(serving);
    return grpc::Status::OK;
  };
  ASSERT_OK(RunStatus(options_, out_));
  EXPECT_THAT(out_.str(), HasSubstr("router   " + server_.target()));
  serving = false;
  EXPECT_THAT(RunStatus(options_, out_), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(out_.str(), HasSubstr("not serving"));
}

TEST_F(RunStatusTest, PrintsOneObject) {
  router_.on_cluster = [](v1::ClusterStatus* status) {
    *status = Cluster();
    return grpc::Status::OK;
  };
  options_.json = true;
  ASSERT_OK(RunStatus(options_, out_));
  const nlohmann::json json = nlohmann::json::parse(out_.str());
  EXPECT_EQ(json["serving"], true);
  EXPECT_EQ(json["model"]["name"], "demo");
  EXPECT_EQ(json["router"]["inflight"], 2);
  ASSERT_EQ(json["workers"].size(), 4u);
  EXPECT_EQ(json["workers"][3]["fingerprint"], "f2");
  EXPECT_EQ(json["workers"][0]["shards"][0]["transport"], "shared_memory");
  EXPECT_EQ(json["workers"][0]["shards"][0]["expert_ids"], nlohmann::json({0, 1, 2, 5, 7, 8}));
  EXPECT_EQ(json["workers"][1]["error"], "connection refused");
}

TEST_F(RunStatusTest, WaitsUntilTheClusterServes) {
  std::atomic<int> calls = 0;
  router_.on_cluster = [&](v1::ClusterStatus* status) {
    if (++calls == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "starting");
    status->set_serving(calls == 3);
    return grpc::Status::OK;
  };
  EXPECT_THAT(RunStatus(options_, out_), StatusIs(absl::StatusCode::kUnavailable, "starting"));
  calls = 0;
  options_.wait_seconds = 60;
  ASSERT_OK(RunStatus(options_, out_));
  EXPECT_EQ(calls, 3);
  EXPECT_THAT(out_.str(), testing::Not(HasSubstr("not serving"))) << "prints the last state alone";
}

}  // namespace
}  // namespace conclave
