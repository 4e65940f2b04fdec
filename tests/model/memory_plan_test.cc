#include "model/memory_plan.h"

#include <filesystem>
#include <string>
#include <tuple>
#include <vector>

#include "model/known_models.h"
#include "tests/model/model_files.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

struct Published {
  const char* name;
  double total, active;        // billions of parameters
  int64_t kv_bytes_per_token;  // BF16
};

// Totals as the models' names and cards say, computed from the shapes by hand.
constexpr Published kPublished[] = {
    {"qwen3-0.6b", 0.596, 0.596, 114688},  {"qwen3-1.7b", 1.721, 1.721, 114688},
    {"qwen3-4b", 4.022, 4.022, 147456},    {"qwen3-8b", 8.191, 8.191, 147456},
    {"qwen3-14b", 14.768, 14.768, 163840}, {"qwen3-30b-a3b", 30.532, 3.353, 98304},
    {"qwen3-32b", 32.762, 32.762, 262144}, {"qwen3-235b-a22b", 235.094, 22.19, 192512},
};

TEST(KnownModelsTest, ParametersAndKvMatchTheNames) {
  std::vector<std::string> names;
  for (const Published& model : kPublished) {
    names.push_back(model.name);
    ASSERT_OK_AND_ASSIGN(const Qwen3Config config, KnownModel(model.name));
    EXPECT_OK(config.Validate());
    EXPECT_NEAR(TotalParameters(config) / 1e9, model.total, 0.0006) << model.name;
    EXPECT_NEAR(ActiveParameters(config) / 1e9, model.active, 0.01) << model.name;
    EXPECT_EQ(KvBytesPerToken(config), model.kv_bytes_per_token) << model.name;
  }
  EXPECT_EQ(KnownModelNames(), names);
}

TEST(KnownModelsTest, UnknownNameListsTheKnown) {
  EXPECT_OK(KnownModel("Qwen3-30B-A3B"));
  EXPECT_THAT(KnownModel("qwen4"), StatusIs(StatusCode::kNotFound, HasSubstr("qwen3-0.6b, ")));
}

TEST(MemoryPlanTest, SplitsWeightsByRole) {
  ASSERT_OK_AND_ASSIGN(const Qwen3Config config, KnownModel("qwen3-30b-a3b"));
  EXPECT_EQ(ExpertBytes(config), 9437184);  // 3 * 2048 * 768 * 2
  EXPECT_EQ(ExpertWeightBytes(config, 128), int64_t{48} * 128 * 9437184);
  EXPECT_EQ(WorkerWeightBytes(config) + ExpertWeightBytes(config, 128),
            2 * TotalParameters(config));
  ASSERT_OK_AND_ASSIGN(const Qwen3Config dense, KnownModel("qwen3-0.6b"));
  EXPECT_EQ(ExpertWeightBytes(dense, 0), 0);
  EXPECT_EQ(WorkerWeightBytes(dense), 2 * TotalParameters(dense));
}

TEST(MemoryPlanTest, StoredWeightsByKind) {
  ASSERT_OK_AND_ASSIGN(Qwen3Config config, KnownModel("qwen3-30b-a3b"));
  const BytesByKind bf16 = StoredWeightBytes(config);
  EXPECT_EQ(bf16.Total(), 2 * TotalParameters(config));
  EXPECT_EQ(bf16.Worker(), WorkerWeightBytes(config));
  EXPECT_EQ(bf16.attention, 2LL * 48 * 2048 * 128 * (32 + 32 + 4 + 4));
  EXPECT_EQ(bf16.gates, 2LL * 48 * 2048 * 128);
  EXPECT_EQ(bf16.norms, 2LL * (48 * (2 * 2048 + 2 * 128) + 2048));
  EXPECT_EQ(bf16.lm_head, 2LL * 151936 * 2048);
  EXPECT_EQ(bf16.embeddings, 2 * bf16.lm_head);
  EXPECT_EQ(bf16.dense_mlp, 0);
  EXPECT_EQ(bf16.one_expert, ExpertBytes(config));
  EXPECT_EQ(bf16.experts, 48 * 128 * bf16.one_expert);
  // FP8: one byte a weight of a projection, and 4 for each of its 128 x 128 blocks.
  config.quantization = WeightQuantization::kFp8Block128;
  const BytesByKind fp8 = StoredWeightBytes(config);
  EXPECT_EQ(fp8.one_expert, 3 * (2048 * 768 + 4 * (2048 / 128) * (768 / 128)));
  EXPECT_EQ(fp8.gates, bf16.gates);
  EXPECT_EQ(fp8.embeddings, bf16.embeddings);
  // A tied head is stored once; 1,000 columns are eight blocks, the last one not full.
  ASSERT_OK_AND_ASSIGN(config, KnownModel("qwen3-0.6b"));
  EXPECT_EQ(StoredWeightBytes(config).embeddings, StoredWeightBytes(config).lm_head);
  config.quantization = WeightQuantization::kFp8Block128;
  config.intermediate_size = 1000;
  EXPECT_EQ(StoredWeightBytes(config).dense_mlp, 28 * 3 * (1000 * 1024 + 4 * 8 * 8));
}

// What PackedMatrix takes for matrices of odd sizes, by hand; whole models are in
// plan_command_test.
TEST(MemoryPlanTest, PackedWeightsByKind) {
  ASSERT_OK_AND_ASSIGN(Qwen3Config config, KnownModel("qwen3-30b-a3b"));
  config.num_hidden_layers = 1;
  config.num_experts = 17;  // the gate: two panels of 16
  config.moe_intermediate_size = 200;
  for (const auto& [dtype, gate_up, down] :
       {std::tuple(WeightDtype::kBf16, 400 * 2048 * 2, 2048 * 200 * 2),
        // Inputs in groups of 256, 64 and 128; 200 of them are one, four and two groups.
        std::tuple(WeightDtype::kInt8, 400 * 8 * 260, 2048 * 1 * 260),
        std::tuple(WeightDtype::kInt4, 400 * 32 * 36, 2048 * 4 * 36),
        std::tuple(WeightDtype::kFp8, 400 * 16 * 132, 2048 * 2 * 132)}) {
    if (dtype == WeightDtype::kFp8) config.quantization = WeightQuantization::kFp8Block128;
    const BytesByKind bytes = PackedWeightBytes(config, dtype);
    EXPECT_EQ(bytes.one_expert, gate_up + down) << WeightDtypeName(dtype);
    EXPECT_EQ(bytes.experts, 17 * bytes.one_expert);
    EXPECT_EQ(PackedExpertBytes(config, 3, dtype), 3 * bytes.one_expert);
    EXPECT_EQ(bytes.gates, 32 * 2048 * 2) << "always BF16";
    EXPECT_EQ(bytes.norms, 4 * (2 * 2048 + 2 * 128 + 2048));
    EXPECT_EQ(bytes.dense_mlp, 0);
  }
  EXPECT_EQ(LmHeadDtype(WeightDtype::kInt4), WeightDtype::kInt8);
}

TEST(MemoryPlanTest, RefusesWithTheArithmetic) {
  MemoryPlan plan;
  plan.worker_weight_bytes = 1'000'000'000;
  plan.expert_weight_bytes = 2'000'000'000;
  plan.kv_tokens = 10'000;
  plan.kv_bytes_per_token = 100'000;
  plan.workspace_bytes = 500'000'000;
  EXPECT_EQ(plan.TotalBytes(), 4'500'000'000);
  EXPECT_OK(CheckFits(plan, 4'500'000'000));
  EXPECT_THAT(CheckFits(plan, 4'499'999'999),
              StatusIs(StatusCode::kResourceExhausted,
                       HasSubstr("worker weights 1.00 GB + experts 2.00 GB + KV 10000 tokens x "
                                 "100000 B = 1.00 GB + workspace 0.50 GB = 4.50 GB")));
}

TEST(MemoryPlanTest, AvailableMemoryHeedsTheCgroup) {
  TempDir root;
  EXPECT_THAT(AvailableMemoryBytes(root.path()), StatusIs(StatusCode::kInternal));
  std::filesystem::create_directories(root.File("proc"));
  std::filesystem::create_directories(root.File("sys/fs/cgroup"));
  root.Write("proc/meminfo", "MemTotal:  100 kB\nMemFree:  10 kB\nMemAvailable:    50 kB\n");
  EXPECT_EQ(*AvailableMemoryBytes(root.path()), 50 * 1024);
  root.Write("sys/fs/cgroup/memory.max", "max\n");
  root.Write("sys/fs/cgroup/memory.current", "30000\n");
  EXPECT_EQ(*AvailableMemoryBytes(root.path()), 50 * 1024);
  root.Write("sys/fs/cgroup/memory.max", "40000\n");
  root.Write("sys/fs/cgroup/memory.stat", "anon 10\nfile 5000\nkernel 7\n");
  EXPECT_EQ(*AvailableMemoryBytes(root.path()), 40000 - 30000 + 5000);
  root.Write("sys/fs/cgroup/memory.current", "90000\n");
  EXPECT_EQ(*AvailableMemoryBytes(root.path()), 0);
  EXPECT_GT(*AvailableMemoryBytes(), 0);
}

}  // namespace
}  // namespace conclave
