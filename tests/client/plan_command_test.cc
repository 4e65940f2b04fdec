#include "client/plan_command.h"

#include <gtest/gtest.h>

#include <sstream>

#include "model/known_models.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

PlanOptions FourH20() {
  PlanOptions options;
  options.config = "qwen3-235b-a22b";
  options.dtype = "fp8";
  options.device.gpu = "h20-96gb";
  options.gpus = 4;
  return options;
}

struct Printed {
  absl::Status status;
  nlohmann::json json;
};

Printed Plan(PlanOptions options) {
  options.json = true;
  std::ostringstream out;
  Printed printed;
  printed.status = RunPlan(options, out);
  if (!out.str().empty()) printed.json = nlohmann::json::parse(out.str());
  return printed;
}

// Worked by hand for Qwen3-235B-A22B. Parameters of a layer: attention 2 x 4,096 x 128 x (64 + 4) =
// 71,303,168; gate 4,096 x 128 = 524,288; one expert 3 x 4,096 x 1,536 = 18,874,368. LM head
// 151,936 x 4,096 = 622,329,856. FP8 takes 1 + 4 / 16,384 bytes a weight, 94 layers.
TEST(PlanTest, MemoryOfTheFlagship) {
  const Printed plan = Plan(FourH20());
  ASSERT_OK(plan.status);
  EXPECT_EQ(plan.json["fits"], true);
  // 94 x (71,303,168 + 128 x 18,874,368) x 1.000244 = 233.86 GB, gates 0.0986, two embeddings of
  // 1.2447, norms 0.0016: 236.45 GB = 220.2 GiB.
  EXPECT_NEAR(plan.json["weights_gib"], 220.2, 0.05);
  // Attention, gates, embeddings and norms are 9.294 GB = 8.66 GiB on every card: 3 copies more.
  EXPECT_NEAR(plan.json["weights_on_cards_gib"], 220.2 + 3 * 8.655, 0.05);
  EXPECT_EQ(plan.json["kv_bytes_per_token"], 192512);  // 2 x 94 x 4 x 128 x 2
  ASSERT_EQ(plan.json["cards"].size(), 4u);
  const nlohmann::json& card = plan.json["cards"][1];
  EXPECT_EQ(card["roles"], nlohmann::json({"worker", "shard"}));
  EXPECT_EQ(card["experts"], "32-63");
  // 95.577 GiB x 0.92 - 2 of workspace - 8.655 - 52.888 of experts = 24.388 GiB of KV.
  EXPECT_NEAR(card["kv_tokens"], 136023, 16);
  EXPECT_EQ(card["kv_tokens"].get<int64_t>() % 16, 0) << "whole blocks";
  EXPECT_NEAR(plan.json["kv_tokens"], 4 * 136023, 64);
  EXPECT_LE(card["attention_bytes"].get<int64_t>() + card["expert_bytes"].get<int64_t>() +
                card["other_weight_bytes"].get<int64_t>() + card["workspace_bytes"].get<int64_t>() +
                card["kv_bytes"].get<int64_t>(),
            card["usable_bytes"].get<int64_t>());
}

// Batch 1, 1,024 tokens of context. Bytes: attention 94 x (71,303,168 x 1.000244 + 2 x 524,288) =
// 6.803 GB; KV 1,024 x 192,512 = 0.197 GB; 8 experts 94 x 8 x 18,874,368 x 1.000244 = 14.197 GB;
// LM head 1.245 GB: 22.44 GB at 4 x 4 TB/s = 1.403 ms, and 2 x 94 hops of 10 us = 1.88 ms.
TEST(PlanTest, DecodeFloorOfTheFlagship) {
  PlanOptions options = FourH20();
  EXPECT_NEAR(Plan(options).json["decode_floor_ms"], 3.283, 0.002);
  // Laid out: attention 6.803 + KV 0.197 + head 1.245 on one card: 2.061 ms; experts 0.887 ms.
  EXPECT_NEAR(Plan(options).json["layout_decode_floor_ms"], 2.061 + 0.887 + 1.88, 0.003);
  options.hop_us = 0;
  EXPECT_NEAR(Plan(options).json["decode_floor_ms"], 1.403, 0.002);
  // Batch 32: 128 x (1 - (15 / 16)^32) = 111.77 experts a layer, 198.35 GB of them; KV 6.308 GB.
  // (6.803 + 198.35 + 6.308 + 1.245) GB / 16 TB/s = 13.294 ms.
  options.batch = 32;
  EXPECT_NEAR(Plan(options).json["decode_floor_ms"], 13.294, 0.01);
  // Prefill: 296 TFLOP/s x 4 / (2 x 94 x (71,303,168 + 524,288 + 8 x 18,874,368)) = 28,264
  // tokens/s.
  EXPECT_NEAR(Plan(options).json["prefill_tokens_per_second"], 28264, 1);
}

// 30B-A3B in BF16 on one H100: 48 layers, attention 2 x 2,048 x 128 x 36 = 18,874,368, gate
// 262,144, expert 4,718,592, LM head 311,164,928; nothing crosses a wire.
TEST(PlanTest, DecodeFloorOfOneCard) {
  PlanOptions options;
  options.config = "Qwen3-30B-A3B";
  options.device.gpu = "H100";
  const Printed plan = Plan(options);
  ASSERT_OK(plan.status);
  // 2 x (48 x (18,874,368 + 262,144 + 8 x 4,718,592) + 311,164,928) + 1,024 x 98,304 = 6.184 GB at
  // 3.35 TB/s.
  EXPECT_NEAR(plan.json["decode_floor_ms"], 1.846, 0.001);
  EXPECT_NEAR(plan.json["layout_decode_floor_ms"], 1.846, 0.001);
  EXPECT_NEAR(plan.json["prefill_tokens_per_second"], 181103, 1);
  EXPECT_EQ(plan.json["wire_bytes_per_step"], 0);
  EXPECT_EQ(plan.json["commands"]["processes"].size(), 2u) << "no shard";
  // With 1,024 sequences an H20 computes longer than it reads: experts 2 x 1,024 x 8 x 4,718,592 x
  // 48 FLOP at 148 TFLOP/s = 25.07 ms, attention and gate 12.71, LM head 4.31; KV of 16 tokens each
  // is read in 0.40.
  options.device.gpu = "h20-96gb";
  options.batch = 1024;
  options.context = 16;
  EXPECT_NEAR(Plan(options).json["decode_floor_ms"], 42.493, 0.002);
}

// Two cards of 64 experts: a token's 8 miss one card with C(64, 8) / C(128, 8) = 0.003097; it hits
// 2 x 0.996903 cards. Half of those, and of the 8 rows back, are elsewhere:
// 48 layers x (0.996903 + 4) rows x 4,096 B = 982,431 B a token.
TEST(PlanTest, WireBytes) {
  PlanOptions options;
  options.config = "qwen3-30b-a3b";
  options.device.gpu = "h100";
  options.gpus = 2;
  options.batch = 10;
  EXPECT_NEAR(Plan(options).json["wire_bytes_per_step"], 9824310, 20);
}

TEST(PlanTest, SaysWhatIsMissing) {
  PlanOptions options = FourH20();
  options.dtype = "bf16";
  const Printed plan = Plan(options);
  EXPECT_THAT(plan.status,
              StatusIs(StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("card 0 of 4 needs attention 12.5 + experts 105.8"),
                             HasSubstr("want at most 87.9 (95.6 GiB x 0.92)"))));
  EXPECT_EQ(plan.json["fits"], false);
  EXPECT_EQ(plan.json["reason"], std::string(plan.status.message()));
  EXPECT_TRUE(plan.json["commands"].is_null());
  const int least = plan.json["least_cards"];
  options.gpus = least;
  EXPECT_OK(Plan(options).status);
  options.gpus = least - 1;
  EXPECT_FALSE(Plan(options).status.ok());
  // Weights fit, this many sequences do not.
  options = FourH20();
  options.batch = 64;
  options.context = 40960;
  EXPECT_THAT(Plan(options).status,
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("KV of 16 x 40960 tokens")));
  // Attention and embeddings are on every card: no number of small ones helps.
  options = FourH20();
  options.device.memory_gib = 8;
  const Printed small = Plan(options);
  EXPECT_EQ(small.json["least_cards"], 0);
}

TEST(PlanTest, LossOfACard) {
  EXPECT_EQ(Plan(FourH20()).json["loss_of_a_card"]["survivors_fit"], true);
  EXPECT_EQ(Plan(FourH20()).json["loss_of_a_card"]["experts_without_owner"], 32);
  PlanOptions options = FourH20();
  options.gpus = 3;
  const Printed three = Plan(options);
  ASSERT_OK(three.status);
  EXPECT_EQ(three.json["kv_tokens"], Plan(FourH20()).json["loss_of_a_card"]["survivors_kv_tokens"]);
  EXPECT_EQ(three.json["loss_of_a_card"]["survivors_fit"], false);
  EXPECT_THAT(three.json["loss_of_a_card"]["text"].get<std::string>(), HasSubstr("a spare"));
}

TEST(PlanTest, CommandsOfOneMachine) {
  const Printed plan = Plan(FourH20());
  const nlohmann::json& commands = plan.json["commands"];
  EXPECT_EQ(commands["up"], nlohmann::json::array());
  ASSERT_EQ(commands["processes"].size(), 5u);
  EXPECT_EQ(
      commands["processes"][1]["argv"],
      nlohmann::json({"conclave-worker", "--model", "MODEL_DIR", "--listen", "127.0.0.1:50052",
                      "--device", "cuda:1", "--gpu_memory_utilization", "0.92", "--local_experts",
                      "32-63", "--shards", "127.0.0.1:50051,127.0.0.1:50053,127.0.0.1:50054"}));
  EXPECT_THAT(commands["note"].get<std::string>(), HasSubstr("Not yet run on a GPU"));
}

TEST(PlanTest, CpuServers) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const Qwen3Config config, KnownModel("qwen3-30b-a3b"));
  PlanOptions options;
  options.config = dir.Write("config.json", FormatQwen3Config(config));
  options.device.cpu = true;
  options.hosts = 2;
  options.device.memory_gib = 64;
  options.device.bandwidth_tbs = 0.2;
  const Printed plan = Plan(options);
  ASSERT_OK(plan.status);
  // 6.184 GB at 2 x 200 GB/s, and 2 x 48 hops of 10 us.
  EXPECT_NEAR(plan.json["decode_floor_ms"], 15.46 + 0.96, 0.01);
  EXPECT_TRUE(plan.json["prefill_tokens_per_second"].is_null()) << "its arithmetic is not known";
  const nlohmann::json& commands = plan.json["commands"];
  EXPECT_EQ(commands["up"], nlohmann::json::array());
  EXPECT_EQ(commands["note"], "");
  ASSERT_EQ(commands["processes"].size(), 5u);
  EXPECT_EQ(commands["processes"][3]["argv"][2], dir.path());
  EXPECT_EQ(commands["processes"][3]["argv"].back(), "host-0:50052,host-1:50052");
  options.device.tflops = 2;
  EXPECT_NEAR(Plan(options).json["prefill_tokens_per_second"], 181103 * 2 * 2 / 989.0, 1);
}

PlanOptions OneServer(const char* config, const char* dtype) {
  PlanOptions options;
  options.config = config;
  options.dtype = dtype;
  options.device.cpu = true;
  options.device.memory_gib = 128;
  options.device.bandwidth_tbs = 0.25;
  options.device.tflops = 5;
  return options;
}

// 30B-A3B with a scale of 4 bytes for 256 inputs: 260 / 256 bytes a weight. Attention 48 x
// 18,874,368 x 260 / 256 = 920,125,440; an expert 4,718,592 x 260 / 256 = 4,792,320, of which there
// are 48 x 128; gates 48 x 262,144 x 2 and embed_tokens 151,936 x 2,048 x 2 in BF16; LM head
// 316,026,880; norms (48 x (2 x 2,048 + 2 x 128) + 2,048) x 4 = 843,776: 31,328,505,856 in all.
TEST(PlanTest, Int8OnACpu) {
  const Printed plan = Plan(OneServer("qwen3-30b-a3b", "int8"));
  ASSERT_OK(plan.status);
  EXPECT_EQ(plan.json["dtype"], "int8");
  EXPECT_NEAR(plan.json["weights_gib"].get<double>() * 0x1p30, 31'328'505'856.0, 1);
  const nlohmann::json& host = plan.json["cards"][0];
  EXPECT_EQ(host["attention_bytes"], 920'125'440);
  EXPECT_EQ(host["expert_bytes"], 48LL * 128 * 4'792'320);
  // 128 GiB x 0.92 - 1 of workspace - weights, in blocks of 16 tokens of 98,304 bytes.
  EXPECT_EQ(host["kv_tokens"], 16 * 59'790);
  // Attention, gates 25,165,824, eight experts 1,840,250,880, LM head and KV 100,663,296 are
  // 3,202,232,320 bytes at 250 GB/s.
  EXPECT_NEAR(plan.json["decode_floor_ms"], 12.809, 0.001);
  // 10 TOP/s / (2 x 48 x (18,874,368 + 262,144 + 8 x 4,718,592)) = 1,831.2 tokens/s.
  EXPECT_NEAR(plan.json["prefill_tokens_per_second"], 1831.2, 0.1);
  for (const nlohmann::json& argv :
       {plan.json["commands"]["up"], plan.json["commands"]["processes"][0]["argv"]}) {
    EXPECT_EQ(argv[argv.size() - 2], "--weight_dtype");
    EXPECT_EQ(argv.back(), "int8");
  }
}

// 36 / 64 bytes a weight, the LM head as in int8: attention 509,607,936, an expert 2,654,208.
TEST(PlanTest, Int4OnACpu) {
  const Printed plan = Plan(OneServer("qwen3-30b-a3b", "int4"));
  ASSERT_OK(plan.status);
  EXPECT_EQ(plan.json["cards"][0]["attention_bytes"], 509'607'936);
  EXPECT_EQ(plan.json["cards"][0]["expert_bytes"], 48LL * 128 * 2'654'208);
  // (509,607,936 + 25,165,824 + 48 x 8 x 2,654,208 + 316,026,880 + 100,663,296) B at 250 GB/s.
  EXPECT_NEAR(plan.json["decode_floor_ms"], 7.883, 0.001);
}

// On a CPU each output has a scale for 128 inputs: 132 / 128 bytes a weight, where a card has
// 16,388 / 16,384. It is multiplied as BF16.
TEST(PlanTest, Fp8OnACpu) {
  const Printed plan = Plan(OneServer("qwen3-30b-a3b", "fp8"));
  ASSERT_OK(plan.status);
  EXPECT_EQ(plan.json["cards"][0]["attention_bytes"], 48LL * 18'874'368 * 132 / 128);
  EXPECT_NEAR(plan.json["prefill_tokens_per_second"], 1831.2 / 2, 0.1);
  EXPECT_EQ(plan.json["commands"]["up"].size(), 10u) << "auto keeps FP8: no --weight_dtype";
}

// A tied LM head is in memory twice: in BF16 to look ids up, and as --weight_dtype to multiply.
TEST(PlanTest, TiedHeadOnACpu) {
  const Printed plan = Plan(OneServer("qwen3-0.6b", "int8"));
  ASSERT_OK(plan.status);
  // 28 layers of 2 x 1,024 + 2 x 128 norms, and 1,024, in FP32.
  EXPECT_EQ(plan.json["cards"][0]["other_weight_bytes"],
            151'936LL * 1'024 * 2 + 151'936LL * 1'024 * 260 / 256 + (28 * 2'304 + 1'024) * 4);
}

TEST(PlanTest, WidensOrQuantizesAnFp8CheckpointOnACpu) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(Qwen3Config config, KnownModel("qwen3-30b-a3b"));
  config.quantization = WeightQuantization::kFp8Block128;
  const std::string path = dir.Write("config.json", FormatQwen3Config(config));
  for (const char* dtype : {"bf16", "int8"}) {
    const Printed plan = Plan(OneServer(path.c_str(), dtype));
    ASSERT_OK(plan.status);
    EXPECT_EQ(plan.json["commands"]["up"].back(), dtype);
    EXPECT_EQ(plan.json["dtype"], dtype);
  }
}

TEST(PlanTest, DenseModelsAreCopied) {
  PlanOptions options;
  options.config = "qwen3-32b";
  options.device.gpu = "h100";
  options.gpus = 2;
  const Printed plan = Plan(options);
  ASSERT_OK(plan.status);
  EXPECT_NEAR(plan.json["weights_on_cards_gib"], 2 * plan.json["weights_gib"].get<double>(), 1e-9);
  EXPECT_EQ(plan.json["wire_bytes_per_step"], 0);
  EXPECT_EQ(plan.json["commands"]["processes"].size(), 3u);
  EXPECT_EQ(plan.json["commands"]["processes"][1]["argv"].back(), "0.92") << "no experts";
}

TEST(PlanTest, TextHasEveryPart) {
  std::ostringstream out;
  ASSERT_OK(RunPlan(FourH20(), out));
  for (const char* part : {"qwen3-235b-a22b in fp8 on 4 x h20-96gb: fits", "220.2 GiB of weights",
                           "worker, shard", "96-127", "floor of a decode step", "floor of prefill",
                           "between cards", "if a card is lost", "# Not yet run on a GPU",
                           "--device cuda:3", "--local_experts 96-127"}) {
    EXPECT_THAT(out.str(), HasSubstr(part));
  }
}

TEST(PlanOptionsTest, NamesWhatIsWrong) {
  const auto refuses = [](auto change, StatusCode code, const char* words) {
    PlanOptions options = FourH20();
    change(options);
    EXPECT_THAT(Plan(options).status, StatusIs(code, HasSubstr(words)));
  };
  const auto kInvalid = StatusCode::kInvalidArgument;
  refuses([](auto& o) { o.config = "qwen4"; }, StatusCode::kNotFound, "want one of qwen3-0.6b");
  refuses([](auto& o) { o.config = "nowhere/config.json"; }, StatusCode::kNotFound, "nowhere");
  refuses([](auto& o) { o.dtype = "fp7"; }, kInvalid, "--dtype is \"fp7\", want bf16 or fp8");
  refuses([](auto& o) { o.dtype = "int8"; }, kInvalid, "want bf16 or fp8 (int8 and int4 with");
  refuses([](auto& o) { o.device.gpu = "tpu"; }, StatusCode::kNotFound,
          "h20-96gb, h20-141gb, h100");
  refuses([](auto& o) { o.device.gpu = ""; }, kInvalid, "no device is given");
  refuses([](auto& o) { o.device.cpu = true; }, kInvalid, "--gpus does not go with --cpu");
  refuses([](auto& o) { o.hosts = 2; }, kInvalid, "--hosts is for --cpu");
  refuses([](auto& o) { o.device.cpu = true, o.gpus.reset(), o.device.gpu = "", o.dtype = ""; },
          kInvalid, "--host_bandwidth_gbs is not given");
  refuses([](auto& o) { o.gpus = 0; }, kInvalid, "--gpus is 0, want 1..128");
  refuses([](auto& o) { o.context = 40961; }, kInvalid, "--context is 40961, want 1..40960");
  refuses([](auto& o) { o.batch = 0; }, kInvalid, "--batch is 0");
  refuses([](auto& o) { o.memory_utilization = 1.1; }, kInvalid, "utilization is 1.1");
  refuses([](auto& o) { o.hop_us = -1; }, kInvalid, "--hop_us is -1");
  refuses([](auto& o) { o.device.bandwidth_tbs = 0; }, kInvalid, "bandwidth in TB/s is 0");
}

TEST(PlanDeviceTest, NumbersStandBesideOrInPlaceOfAName) {
  ASSERT_OK_AND_ASSIGN(PlanDevice device, ChooseDevice({.gpu = "H200"}, /*fp8=*/false));
  EXPECT_EQ(device.name, "h200");
  EXPECT_EQ(device.bandwidth_tbs, 4.8);
  ASSERT_OK_AND_ASSIGN(device, ChooseDevice({.gpu = "h100", .bandwidth_tbs = 3.0}, false));
  EXPECT_EQ(device.bandwidth_tbs, 3.0);
  EXPECT_EQ(device.bf16_tflops, 989);
  ASSERT_OK_AND_ASSIGN(
      device, ChooseDevice({.memory_gib = 24, .bandwidth_tbs = 1, .tflops = 80}, /*fp8=*/true));
  EXPECT_EQ(device.fp8_tflops, 80);
  EXPECT_EQ(device.bf16_tflops, 40);
  ASSERT_OK_AND_ASSIGN(device, ChooseDevice({.cpu = true, .bandwidth_tbs = 0.1}, false));
  EXPECT_GT(device.memory_gib, 0) << "this machine's";
}

}  // namespace
}  // namespace conclave
