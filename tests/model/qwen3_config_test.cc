#include "model/qwen3_config.h"

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "model/known_models.h"
#include "nlohmann/json.hpp"
#include "tests/model/model_files.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using absl::StatusCode;
using nlohmann::json;
using testing::HasSubstr;

// The fields of a released dense model (1.7B) and MoE (30B-A3B).
json DenseJson() {
  return json::parse(R"({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
      "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
      "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
      "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
      "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
      "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
      "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false,
      "vocab_size": 151936})");
}

json MoeJson() {
  json moe = DenseJson();
  moe.update(json::parse(R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
      "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 768,
      "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
      "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
      "rope_theta": 1000000.0, "tie_word_embeddings": false})"));
  return moe;
}

absl::StatusOr<Qwen3Config> Parse(const json& config) { return ParseQwen3Config(config.dump()); }

// The base with some fields replaced.
absl::StatusOr<Qwen3Config> ParseWith(json base, const std::string& changes) {
  base.update(json::parse(changes));
  return Parse(base);
}

TEST(Qwen3ConfigTest, ReadsADenseModel) {
  ASSERT_OK_AND_ASSIGN(const Qwen3Config config, Parse(DenseJson()));
  ASSERT_OK_AND_ASSIGN(const Qwen3Config known, KnownModel("qwen3-1.7b"));
  EXPECT_EQ(config, known);
  EXPECT_EQ(config.architecture, Qwen3Architecture::kDense);
  EXPECT_EQ(config.hidden_size, 2048);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.rope_theta, 1e6);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.num_experts, 0);
  EXPECT_EQ(config.MaxContext(), 40960);
  EXPECT_EQ(config.NumSparseLayers(), 0);
  EXPECT_EQ(config.eos_token_ids, std::vector<int32_t>{151645});
}

TEST(Qwen3ConfigTest, ReadsAMoeModel) {
  ASSERT_OK_AND_ASSIGN(const Qwen3Config config, Parse(MoeJson()));
  ASSERT_OK_AND_ASSIGN(const Qwen3Config known, KnownModel("qwen3-30b-a3b"));
  EXPECT_EQ(config, known);
  EXPECT_EQ(config.num_experts, 128);
  EXPECT_EQ(config.num_experts_per_tok, 8);
  EXPECT_EQ(config.moe_intermediate_size, 768);
  EXPECT_TRUE(config.norm_topk_prob);
  EXPECT_EQ(config.NumSparseLayers(), 48);
}

TEST(Qwen3ConfigTest, ReadsFp8Blocks) {
  ASSERT_OK_AND_ASSIGN(const Qwen3Config config, ParseWith(MoeJson(), R"({"quantization_config": {
                           "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                           "modules_to_not_convert": ["lm_head"], "weight_block_size": [128, 128]}})"));
  EXPECT_EQ(config.quantization, WeightQuantization::kFp8Block128);
}

TEST(Qwen3ConfigTest, SparseLayersFollowStepAndExceptions) {
  ASSERT_OK_AND_ASSIGN(const Qwen3Config config,
                       ParseWith(MoeJson(), R"({"num_hidden_layers": 6, "decoder_sparse_step": 2,
                                                "mlp_only_layers": [3]})"));
  // (layer + 1) % 2 == 0 leaves 1, 3 and 5; 3 is an exception.
  for (int layer = 0; layer < 6; ++layer) {
    EXPECT_EQ(config.IsSparseLayer(layer), layer == 1 || layer == 5) << layer;
  }
  EXPECT_EQ(config.NumSparseLayers(), 2);
}

TEST(Qwen3ConfigTest, ReadsYarnInBothForms) {
  const std::string yarn = R"("factor": 4.0, "original_max_position_embeddings": 32768})";
  const std::vector<std::string> forms = {
      R"({"rope_scaling": {"rope_type": "yarn", )" + yarn + "}",
      R"({"rope_scaling": {"type": "yarn", )" + yarn + "}",
      R"({"rope_theta": null, "rope_parameters":
             {"rope_theta": 1000000.0, "rope_type": "yarn", )" +
          yarn + "}",
  };
  for (const std::string& form : forms) {
    ASSERT_OK_AND_ASSIGN(const Qwen3Config config, ParseWith(DenseJson(), form));
    ASSERT_TRUE(config.rope_scaling.has_value()) << form;
    EXPECT_EQ(config.rope_scaling->factor, 4);
    EXPECT_EQ(config.rope_scaling->original_max_position_embeddings, 32768);
    EXPECT_EQ(config.rope_scaling->beta_fast, 32);
    EXPECT_EQ(config.rope_scaling->beta_slow, 1);
    EXPECT_TRUE(config.rope_scaling->truncate);
    EXPECT_NEAR(config.rope_scaling->attention_factor, 1.138629436, 1e-9);  // 0.1 ln 4 + 1
    EXPECT_EQ(config.MaxContext(), 131072);
    EXPECT_EQ(config.rope_theta, 1e6);
  }
}

TEST(Qwen3ConfigTest, YarnFieldsOverrideTheDefaults) {
  ASSERT_OK_AND_ASSIGN(const Qwen3Config stated,
                       ParseWith(DenseJson(), R"({"rope_scaling": {"rope_type": "yarn",
                           "factor": 2, "attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2,
                           "truncate": false}})"));
  // Without original_max_position_embeddings the model's own length is what is scaled.
  const YarnScaling expected = {2, 40960, 1.5, 16, 2, false};
  EXPECT_EQ(stated.rope_scaling, expected);

  ASSERT_OK_AND_ASSIGN(const Qwen3Config mscale,
                       ParseWith(DenseJson(), R"({"rope_scaling": {"rope_type": "yarn",
                           "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.5}})"));
  // (0.1 ln 40 + 1) / (0.05 ln 40 + 1) = 1.3688879454 / 1.1844439727 = 1.1557219902
  EXPECT_NEAR(mscale.rope_scaling->attention_factor, 1.1557219902, 1e-9);

  ASSERT_OK_AND_ASSIGN(const Qwen3Config ratio,
                       ParseWith(DenseJson(), R"({"max_position_embeddings": 131072,
                           "rope_scaling": {"rope_type": "yarn",
                                            "original_max_position_embeddings": 32768}})"));
  EXPECT_EQ(ratio.rope_scaling->factor, 4);
}

TEST(Qwen3ConfigTest, ReadsTransformers5Names) {
  json config = DenseJson();
  config.erase("rope_theta");
  config.erase("rope_scaling");
  config.erase("torch_dtype");
  config["dtype"] = "float16";
  config["rope_parameters"] = {{"rope_theta", 5e6}, {"rope_type", "default"}};
  config["layer_types"] = json::array({"full_attention", "full_attention"});
  ASSERT_OK_AND_ASSIGN(const Qwen3Config parsed, Parse(config));
  EXPECT_EQ(parsed.rope_theta, 5e6);
  EXPECT_FALSE(parsed.rope_scaling.has_value());
  EXPECT_EQ(parsed.torch_dtype, "float16");
}

TEST(Qwen3ConfigTest, HeadDimDefaultsAsTransformersDo) {
  json dense = DenseJson(), moe = MoeJson();
  dense.erase("head_dim");
  moe.erase("head_dim");
  EXPECT_EQ(Parse(dense)->head_dim, 128);
  EXPECT_EQ(Parse(moe)->head_dim, 64);  // 2048 / 32
}

TEST(Qwen3ConfigTest, EosIdMayBeAList) {
  ASSERT_OK_AND_ASSIGN(const Qwen3Config config,
                       ParseWith(DenseJson(), R"({"eos_token_id": [151645, 151643]})"));
  EXPECT_EQ(config.eos_token_ids, (std::vector<int32_t>{151645, 151643}));
}

TEST(Qwen3ConfigTest, UnusedSlidingWindowIsServed) {
  EXPECT_OK(ParseWith(DenseJson(), R"({"use_sliding_window": false, "sliding_window": 4096})"));
  EXPECT_OK(ParseWith(DenseJson(), R"({"use_sliding_window": true, "sliding_window": null})"));
  // transformers slides from layer max_window_layers on: here there is none.
  EXPECT_OK(ParseWith(DenseJson(), R"({"use_sliding_window": true, "sliding_window": 4096})"));
}

TEST(Qwen3ConfigTest, FormatReadsBackEqual) {
  for (const json& base : {DenseJson(), MoeJson()}) {
    ASSERT_OK_AND_ASSIGN(Qwen3Config config, Parse(base));
    config.rope_scaling = YarnScaling{4, 32768, 1.1386294361119891, 32, 1, false};
    config.quantization = WeightQuantization::kFp8Block128;
    if (config.num_experts > 0) config.mlp_only_layers = {0, 3};
    ASSERT_OK_AND_ASSIGN(const Qwen3Config read, ParseQwen3Config(FormatQwen3Config(config)));
    EXPECT_EQ(read, config);
  }
}

struct Refusal {
  std::string changes;
  std::string message;
};

void ExpectRefusals(const json& base, const std::vector<Refusal>& refusals) {
  for (const Refusal& refusal : refusals) {
    EXPECT_THAT(ParseWith(base, refusal.changes),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(refusal.message)))
        << refusal.changes;
  }
}

TEST(Qwen3ConfigTest, RefusesWhatIsNotServed) {
  ExpectRefusals(
      DenseJson(),
      {{R"({"architectures": ["LlamaForCausalLM"]})", "architectures is [\"LlamaForCausalLM\"]"},
       {R"({"architectures": null, "model_type": "qwen2"})", "model_type is \"qwen2\""},
       {R"({"architectures": null, "model_type": null})", "model_type is missing"},
       {R"({"attention_bias": true})", "attention_bias is true, want false"},
       {R"({"hidden_act": "gelu"})", "hidden_act is \"gelu\", want silu"},
       {R"({"use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 27})",
        "use_sliding_window is true"},
       {R"({"layer_types": ["full_attention", "sliding_attention"]})", "layer_types is"},
       {R"({"rope_scaling": {"type": "linear", "factor": 2}})",
        "rope_scaling.type is \"linear\", want default or yarn"},
       {R"({"rope_scaling": {"factor": 2}})", "rope_scaling.type is missing"},
       {R"({"rope_scaling": {"type": "yarn"}})", "rope_scaling.factor is missing"},
       {R"({"rope_scaling": 3})", "rope_scaling is 3, want an object or null"},
       {R"({"quantization_config": {"quant_method": "awq"}})",
        "quantization_config.quant_method is \"awq\", want fp8"},
       {R"({"quantization_config": {}})", "quantization_config.quant_method is missing"},
       {R"({"quantization_config": 8})", "quantization_config is 8"},
       {R"({"quantization_config": {"quant_method": "fp8", "fmt": "e5m2"}})", "fmt is \"e5m2\""},
       {R"({"quantization_config": {"quant_method": "fp8"}})", "weight_block_size is missing"},
       {R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 128]}})",
        "weight_block_size is [64,128], want [128,128]"}});
  ExpectRefusals(MoeJson(), {{R"({"use_sliding_window": true, "sliding_window": 4096})",
                              "use_sliding_window"}});
}

TEST(Qwen3ConfigTest, NamesTheFieldOfAWrongType) {
  ExpectRefusals(
      DenseJson(),
      {{R"({"hidden_size": null})", "hidden_size is missing"},
       {R"({"hidden_size": "2048"})", "hidden_size is \"2048\", want a 32-bit integer"},
       {R"({"hidden_size": 2048.5})", "hidden_size is 2048.5"},
       {R"({"hidden_size": 4294967296})", "hidden_size is 4294967296"},
       {R"({"hidden_size": -9223372036854775808})", "hidden_size is -9223372036854775808"},
       {R"({"hidden_size": 18446744073709551615})", "hidden_size is 18446744073709551615"},
       {R"({"rms_norm_eps": "small"})", "rms_norm_eps is \"small\", want a number"},
       {R"({"tie_word_embeddings": 1})", "tie_word_embeddings is 1, want true or false"},
       {R"({"torch_dtype": 16})", "torch_dtype is 16, want a string"},
       {R"({"eos_token_id": [1, "2"]})", "eos_token_id is [1,\"2\"]"}});
  ExpectRefusals(MoeJson(), {{R"({"num_experts": null})", "num_experts is missing"}});
}

TEST(Qwen3ConfigTest, ValidateNamesTheFieldOutOfRange) {
  ExpectRefusals(
      DenseJson(),
      {{R"({"hidden_size": 0})", "hidden_size is 0, want 1..65536"},
       {R"({"hidden_size": 65537})", "hidden_size is 65537, want 1..65536"},
       {R"({"num_hidden_layers": 513})", "num_hidden_layers is 513, want 1..512"},
       {R"({"num_attention_heads": 0})", "num_attention_heads is 0, want 1..1024"},
       {R"({"num_key_value_heads": 17})", "num_key_value_heads is 17, want 1..16"},
       {R"({"num_key_value_heads": 3})", "num_key_value_heads is 3, want a divisor of 16"},
       {R"({"head_dim": 1024})", "head_dim is 1024, want 2..512"},
       {R"({"head_dim": 33})", "head_dim is 33, want an even number"},
       {R"({"vocab_size": 2000000})", "vocab_size is 2000000"},
       {R"({"max_position_embeddings": 0})", "max_position_embeddings is 0"},
       {R"({"rms_norm_eps": 0})", "rms_norm_eps is 0"},
       {R"({"rope_theta": -1})", "rope_theta is -1"},
       {R"({"intermediate_size": 0})", "intermediate_size is 0, want 1..65536"},
       {R"({"eos_token_id": 151936})", "eos_token_id is 151936, want 0..151935"},
       {R"({"rope_scaling": {"type": "yarn", "factor": 0.5}})", "rope_scaling.factor is 0.5"},
       {R"({"rope_scaling": {"type": "yarn", "factor": 1000}})",
        "rope_scaling.factor * original_max_position_embeddings is"},
       {R"({"rope_scaling": {"type": "yarn", "factor": 4,
                             "original_max_position_embeddings": -1}})",
        "rope_scaling.original_max_position_embeddings is -1"},
       {R"({"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 0}})",
        "rope_scaling.attention_factor is 0"},
       {R"({"rope_scaling": {"type": "yarn", "factor": 4, "beta_slow": 0}})",
        "rope_scaling.beta_slow is 0"},
       {R"({"rope_scaling": {"type": "yarn", "factor": 4, "beta_slow": 2, "beta_fast": 1}})",
        "rope_scaling.beta_fast is 1"}});
  ExpectRefusals(
      MoeJson(),
      {{R"({"num_experts": 1025})", "num_experts is 1025, want 1..1024"},
       {R"({"num_experts_per_tok": 129})", "num_experts_per_tok is 129, want 1..128"},
       {R"({"moe_intermediate_size": 0})", "moe_intermediate_size is 0"},
       {R"({"decoder_sparse_step": 0})", "decoder_sparse_step is 0"},
       {R"({"mlp_only_layers": [48]})", "mlp_only_layers is 48, want 0..47"},
       {R"({"mlp_only_layers": [1], "intermediate_size": 0})", "intermediate_size is 0"}});
}

TEST(Qwen3ConfigTest, MoeWithoutDenseLayersNeedsNoIntermediateSize) {
  EXPECT_OK(ParseWith(MoeJson(), R"({"intermediate_size": null})"));
}

TEST(Qwen3ConfigTest, DenseConfigWithExpertsIsInvalid) {
  ASSERT_OK_AND_ASSIGN(Qwen3Config config, Parse(DenseJson()));
  config.num_experts = 8;
  EXPECT_THAT(config.Validate(),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("num_experts is 8")));
}

TEST(Qwen3ConfigTest, RefusesWhatIsNotAJsonObject) {
  for (const char* text : {"", "{", "{\"a\":1}x", "\xff\xfe", "[1,2]", "null"}) {
    EXPECT_THAT(ParseQwen3Config(text), StatusIs(StatusCode::kInvalidArgument)) << text;
  }
  // Deep nesting must not exhaust the stack.
  EXPECT_THAT(ParseQwen3Config(std::string(1 << 20, '[')), StatusIs(StatusCode::kInvalidArgument));
}

TEST(Qwen3ConfigTest, LoadNamesTheFile) {
  TempDir dir;
  EXPECT_THAT(LoadQwen3Config(dir.path()),
              StatusIs(StatusCode::kNotFound, HasSubstr("config.json")));
  dir.Write("config.json", "{");
  EXPECT_THAT(LoadQwen3Config(dir.path()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr(dir.File("config.json"))));
  dir.Write("config.json", DenseJson().dump());
  EXPECT_OK(LoadQwen3Config(dir.path()));
}

}  // namespace
}  // namespace conclave
