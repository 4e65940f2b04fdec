#include "model/fingerprint.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>

#include "model/synthetic.h"
#include "model/weight_catalog.h"
#include "tests/model/model_files.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

std::string Write(const TempDir& dir, const std::string& name, const Qwen3Config& config,
                  const SyntheticOptions& options = {}) {
  EXPECT_OK(WriteSyntheticCheckpoint(config, dir.File(name), options));
  return dir.File(name);
}

absl::StatusOr<std::string> FingerprintOf(const std::string& model_dir, const Qwen3Config& config) {
  const auto checkpoint = Checkpoint::Open(model_dir);
  if (!checkpoint.ok()) return checkpoint.status();
  return Fingerprint(**checkpoint, config);
}

// Changes one byte of a tensor in place.
void Corrupt(const std::string& model_dir, const std::string& tensor, size_t offset) {
  std::string path = model_dir + "/model.safetensors";
  size_t position = 0;
  {
    const auto checkpoint = Checkpoint::Open(model_dir);
    ASSERT_OK(checkpoint);
    const auto view = (*checkpoint)->Find(tensor);
    ASSERT_OK(view);
    const std::string bytes = ReadBytes(path);
    const std::string wanted(reinterpret_cast<const char*>(view->data), view->bytes);
    position = bytes.find(wanted) + offset;
  }
  std::string bytes = ReadBytes(path);
  bytes[position] = static_cast<char>(bytes[position] ^ 1);
  std::ofstream(path, std::ios::binary) << bytes;
}

TEST(FingerprintTest, DoesNotDependOnTheParts) {
  TempDir dir;
  SyntheticOptions cut;
  cut.max_part_bytes = 50'000;
  const Qwen3Config config = TinyMoeConfig();
  ASSERT_OK_AND_ASSIGN(const std::string whole, FingerprintOf(Write(dir, "a", config), config));
  ASSERT_OK_AND_ASSIGN(const std::string parts,
                       FingerprintOf(Write(dir, "b", config, cut), config));
  EXPECT_EQ(whole.size(), 32u);
  EXPECT_EQ(whole, parts);
}

TEST(FingerprintTest, TellsModelsApart) {
  TempDir dir;
  const Qwen3Config config = TinyMoeConfig();
  SyntheticOptions options;
  const std::string base = Write(dir, "base", config);
  ASSERT_OK_AND_ASSIGN(const std::string fingerprint, FingerprintOf(base, config));

  options.seed = 2;
  EXPECT_NE(*FingerprintOf(Write(dir, "seed", config, options), config), fingerprint);
  options = SyntheticOptions();
  options.dtype = DType::kF32;
  EXPECT_NE(*FingerprintOf(Write(dir, "dtype", config, options), config), fingerprint);
  Qwen3Config other = config;
  other.rope_theta = 2e6;  // same weights, another model
  EXPECT_NE(*FingerprintOf(base, other), fingerprint);

  const std::string expert = ExpertWeightName(1, 7, "down_proj");
  for (const size_t offset : {size_t{0}, size_t{64 * 32}, size_t{64 * 32 * 2 - 1}}) {
    Corrupt(base, expert, offset);
    EXPECT_NE(*FingerprintOf(base, config), fingerprint) << offset;
    Corrupt(base, expert, offset);
  }
  EXPECT_EQ(*FingerprintOf(base, config), fingerprint);
}

TEST(FingerprintTest, CoversFp8Scales) {
  TempDir dir;
  Qwen3Config config = TinyDenseConfig();
  config.quantization = WeightQuantization::kFp8Block128;
  const std::string base = Write(dir, "fp8", config);
  ASSERT_OK_AND_ASSIGN(const std::string fingerprint, FingerprintOf(base, config));
  Corrupt(base, LayerWeightName(0, "mlp.up_proj") + "_scale_inv", 0);
  EXPECT_NE(*FingerprintOf(base, config), fingerprint);
}

TEST(CatalogTest, NamesTheFirstThatIsMissingOrWrong) {
  TempDir dir;
  const std::string dense = Write(dir, "dense", TinyDenseConfig());
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(dense));
  EXPECT_OK(CheckCatalog(*checkpoint, TinyDenseConfig()));
  Qwen3Config config = TinyDenseConfig();
  config.num_hidden_layers = 3;
  EXPECT_THAT(CheckCatalog(*checkpoint, config),
              StatusIs(StatusCode::kDataLoss,
                       HasSubstr("model.layers.2.input_layernorm.weight: found no such tensor")));
  EXPECT_THAT(Fingerprint(*checkpoint, config), StatusIs(StatusCode::kDataLoss));
  config = TinyDenseConfig();
  config.num_key_value_heads = 4;
  EXPECT_THAT(CheckCatalog(*checkpoint, config),
              StatusIs(StatusCode::kDataLoss,
                       AllOf(HasSubstr("model.layers.0.self_attn.k_proj.weight"),
                             HasSubstr("found BF16 [32, 64]"), HasSubstr("[64, 64]"))));
  config = TinyDenseConfig();
  config.tie_word_embeddings = false;
  EXPECT_THAT(CheckCatalog(*checkpoint, config),
              StatusIs(StatusCode::kDataLoss, HasSubstr("tensor lm_head.weight")));
}

TEST(CatalogTest, ListsWeightsAndTheirOwners) {
  const std::vector<WeightSpec> specs = WeightCatalog(TinyMoeConfig());
  // embed, norm, lm_head; a layer has 4 norms, 4 projections, the gate and 8 experts of 3.
  EXPECT_EQ(specs.size(), 3u + 2 * (4 + 4 + 1 + 8 * 3));
  EXPECT_EQ(specs.front().name, "model.embed_tokens.weight");
  EXPECT_EQ(specs.back().name, "lm_head.weight");
  const auto expert = std::find_if(specs.begin(), specs.end(), [](const WeightSpec& spec) {
    return spec.name == "model.layers.1.mlp.experts.7.down_proj.weight";
  });
  ASSERT_NE(expert, specs.end());
  EXPECT_EQ(expert->shape, (std::vector<int64_t>{64, 32}));
  EXPECT_EQ(expert->owner, WeightOwner::kExpertShard);
  EXPECT_EQ(expert->layer, 1);
  EXPECT_EQ(expert->expert, 7);
  EXPECT_TRUE(expert->quantized);
  for (const WeightSpec& spec : specs) {
    EXPECT_EQ(spec.owner == WeightOwner::kExpertShard, spec.expert >= 0) << spec.name;
  }
  EXPECT_STREQ(LmHeadName(TinyMoeConfig()), "lm_head.weight");
  EXPECT_STREQ(LmHeadName(TinyDenseConfig()), "model.embed_tokens.weight");
  EXPECT_EQ(WeightCatalog(TinyDenseConfig()).size(), 2u + 2 * (4 + 4 + 3));
}

}  // namespace
}  // namespace conclave
