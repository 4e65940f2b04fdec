#include "model/synthetic.h"

#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/fingerprint.h"
#include "model/generation_config.h"
#include "model/known_models.h"
#include "model/memory_plan.h"
#include "model/synthetic_weights.h"
#include "model/weight_catalog.h"
#include "model/weight_reader.h"
#include "tests/model/model_files.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<Qwen3Config> TinyConfigs() {
  Qwen3Config untied = TinyDenseConfig();
  untied.tie_word_embeddings = false;
  Qwen3Config mixed = TinyMoeConfig();  // one dense layer
  mixed.mlp_only_layers = {0};
  Qwen3Config fp8 = TinyMoeConfig();
  fp8.quantization = WeightQuantization::kFp8Block128;
  return {TinyDenseConfig(), TinyMoeConfig(), untied, mixed, fp8};
}

TEST(SyntheticTest, LoadsLikeAnyOther) {
  for (const Qwen3Config& config : TinyConfigs()) {
    TempDir dir;
    ASSERT_OK(WriteSyntheticCheckpoint(config, dir.File("m")));
    ASSERT_OK_AND_ASSIGN(const Qwen3Config read, LoadQwen3Config(dir.File("m")));
    EXPECT_EQ(read, config);
    ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(dir.File("m")));
    EXPECT_OK(CheckCatalog(*checkpoint, config));
    EXPECT_EQ(static_cast<int64_t>(checkpoint->total_bytes()),
              SyntheticWeightBytes(config, DType::kBF16));
    if (config.quantization == WeightQuantization::kNone) {
      EXPECT_EQ(SyntheticWeightBytes(config, DType::kBF16), 2 * TotalParameters(config));
    }
    ASSERT_OK_AND_ASSIGN(const GenerationConfig generation, LoadGenerationConfig(dir.File("m")));
    EXPECT_EQ(generation.eos_token_ids, (std::vector<int32_t>{258, 256}));
    EXPECT_EQ(generation.temperature, 0.6);
  }
}

TEST(SyntheticTest, SeedAndNameDecideTheBytesAlone) {
  TempDir dir;
  SyntheticOptions options;
  ASSERT_OK(WriteSyntheticCheckpoint(TinyMoeConfig(), dir.File("a"), options));
  options.num_threads = 3;
  ASSERT_OK(WriteSyntheticCheckpoint(TinyMoeConfig(), dir.File("b"), options));
  options.seed = 2;
  ASSERT_OK(WriteSyntheticCheckpoint(TinyMoeConfig(), dir.File("c"), options));
  const std::string a = ReadBytes(dir.File("a/model.safetensors"));
  EXPECT_GT(a.size(), 300000u);
  EXPECT_EQ(a, ReadBytes(dir.File("b/model.safetensors")));
  EXPECT_NE(a, ReadBytes(dir.File("c/model.safetensors")));
}

TEST(SyntheticTest, RangesMakeNoDifference) {
  for (const SyntheticTensor& tensor : SyntheticTensors(TinyConfigs().back(), DType::kF16)) {
    const int64_t size = static_cast<int64_t>(DTypeSize(tensor.entry.dtype));
    int64_t count = 1;
    for (const int64_t dimension : tensor.entry.shape) count *= dimension;
    count = std::min<int64_t>(count, 3000);
    std::vector<uint8_t> whole(count * size), pieces(count * size);
    FillSynthetic(tensor, 5, 0, count, whole.data());
    for (int64_t at = 0; at < count; at += 516) {
      FillSynthetic(tensor, 5, at, std::min<int64_t>(516, count - at), pieces.data() + at * size);
    }
    ASSERT_EQ(whole, pieces) << tensor.entry.name;
  }
}

// Mean and standard deviation of a weight as it is read.
std::pair<double, double> Moments(const Checkpoint& checkpoint, const std::string& name,
                                  int64_t rows, int64_t cols) {
  const auto matrix = ReadMatrix(checkpoint, name, rows, cols);
  EXPECT_OK(matrix);
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < rows * cols; ++i) {
    const double value = ToFloat(matrix->data()[i]);
    sum += value;
    squares += value * value;
  }
  const double mean = sum / static_cast<double>(rows * cols);
  return {mean, std::sqrt(squares / static_cast<double>(rows * cols) - mean * mean)};
}

TEST(SyntheticTest, WeightsHaveTheStatedSpread) {
  for (const Qwen3Config& config : TinyConfigs()) {
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      TempDir dir;
      SyntheticOptions options;
      options.dtype = dtype;
      ASSERT_OK(WriteSyntheticCheckpoint(config, dir.path(), options));
      ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(dir.path()));
      // 64 x 64 values: the mean's error is 0.125 / 64 = 0.002, the deviation's about as much.
      // One FP8 scale is drawn from 0.5..1.5 of the mean scale.
      const auto [mean, deviation] =
          Moments(*checkpoint, LayerWeightName(1, "self_attn.q_proj"), 64, 64);
      const bool fp8 = config.quantization != WeightQuantization::kNone;
      EXPECT_NEAR(mean, 0, 0.01);
      EXPECT_NEAR(deviation, 0.125, fp8 ? 0.07 : 0.01);
      ASSERT_OK_AND_ASSIGN(const std::vector<BFloat16> norm,
                           ReadVector(*checkpoint, kFinalNormName, 64));
      for (const BFloat16 weight : norm) EXPECT_NEAR(ToFloat(weight), 1, 0.205);
      EXPECT_NE(norm[0], norm[1]);
    }
  }
}

TEST(SyntheticTest, CutsIntoPartsWithAnIndex) {
  TempDir dir;
  SyntheticOptions options;
  options.max_part_bytes = 100'000;
  int64_t last_done = 0, last_total = 0;
  options.progress = [&](int64_t done, int64_t total) {
    EXPECT_GT(done, last_done);
    last_done = done;
    last_total = total;
  };
  ASSERT_OK(WriteSyntheticCheckpoint(TinyMoeConfig(), dir.path(), options));
  EXPECT_EQ(last_done, last_total);
  EXPECT_EQ(last_total, SyntheticWeightBytes(TinyMoeConfig(), DType::kBF16));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(dir.path()));
  EXPECT_GE(checkpoint->parts().size(), 4u);
  EXPECT_FALSE(std::filesystem::exists(dir.File("model.safetensors")));
  EXPECT_OK(CheckCatalog(*checkpoint, TinyMoeConfig()));
}

TEST(SyntheticTest, RefusesADirectoryInUse) {
  TempDir dir;
  dir.Write("notes.txt", "mine");
  EXPECT_THAT(WriteSyntheticCheckpoint(TinyMoeConfig(), dir.path()),
              StatusIs(StatusCode::kAlreadyExists, HasSubstr(dir.path())));
  EXPECT_EQ(ReadBytes(dir.File("notes.txt")), "mine");
}

TEST(SyntheticTest, RefusesWhatCannotBeServed) {
  TempDir dir;
  Qwen3Config config = TinyMoeConfig();
  config.num_experts_per_tok = 9;
  EXPECT_THAT(WriteSyntheticCheckpoint(config, dir.File("m")),
              StatusIs(StatusCode::kInvalidArgument));
  config = TinyMoeConfig();
  config.vocab_size = 281;
  EXPECT_THAT(
      WriteSyntheticCheckpoint(config, dir.File("m")),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("vocab_size is 281, want at least 282")));
  SyntheticOptions options;
  options.dtype = DType::kI32;
  EXPECT_THAT(WriteSyntheticCheckpoint(TinyMoeConfig(), dir.File("m"), options),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("dtype is I32")));
  options = SyntheticOptions();
  options.num_threads = 0;
  EXPECT_THAT(WriteSyntheticCheckpoint(TinyMoeConfig(), dir.File("m"), options),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("num_threads is 0")));
  EXPECT_FALSE(std::filesystem::exists(dir.File("m")));
}

TEST(SyntheticTest, NoRoomIsSaidBeforeWriting) {
  TempDir dir;
  Qwen3Config huge = *KnownModel("qwen3-235b-a22b");
  huge.num_hidden_layers = 512;
  huge.hidden_size = 65536;  // some hundred terabytes
  EXPECT_THAT(WriteSyntheticCheckpoint(huge, dir.File("m")),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("free space")));
  EXPECT_FALSE(std::filesystem::exists(dir.File("m")));
}

TEST(SyntheticTest, AFullDiskLeavesNothing) {
  // A limit on the size of a file fails a write just as a full disk does.
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  struct rlimit small = before;
  small.rlim_cur = 200'000;
  signal(SIGXFSZ, SIG_IGN);
  TempDir dir;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status made = WriteSyntheticCheckpoint(TinyMoeConfig(), dir.File("m"));
  const absl::Status found = WriteSyntheticCheckpoint(TinyMoeConfig(), dir.path());
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_THAT(made, StatusIs(StatusCode::kResourceExhausted,
                             AllOf(HasSubstr("cannot write"), HasSubstr("model.safetensors"))));
  EXPECT_FALSE(std::filesystem::exists(dir.File("m")));
  EXPECT_THAT(found, StatusIs(StatusCode::kResourceExhausted));
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(SyntheticTest, OtherFailuresOfTheFileSystem) {
  TempDir dir;
  EXPECT_THAT(WriteSyntheticCheckpoint(TinyMoeConfig(), dir.Write("file", "x") + "/m"),
              StatusIs(StatusCode::kInternal, HasSubstr("make directory")));
  EXPECT_THAT(WriteSyntheticCheckpoint(TinyMoeConfig(), "/sys/conclave-synthetic"),
              StatusIs(StatusCode::kPermissionDenied));  // nobody makes directories in sysfs
}

TEST(FloatToHalfTest, HandWorkedValues) {
  EXPECT_EQ(FloatToHalf(1.0f), 0x3c00);
  EXPECT_EQ(FloatToHalf(-2.0f), 0xc000);
  EXPECT_EQ(FloatToHalf(1.0f + 0x1p-11f), 0x3c00);  // half way: down to even
  EXPECT_EQ(FloatToHalf(1.0f + 0x3p-11f), 0x3c02);  // half way: up to even
  EXPECT_EQ(FloatToHalf(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(0x1p-24f), 0x0001);
  EXPECT_EQ(FloatToHalf(0x1p-25f), 0x0000);  // half way: down to even
  EXPECT_EQ(FloatToHalf(NAN) & 0x7e00, 0x7e00);
  for (int bits = 0; bits < 0x7c00; ++bits) {
    ASSERT_EQ(FloatToHalf(HalfToFloat(static_cast<uint16_t>(bits))), bits);
  }
}

}  // namespace
}  // namespace conclave
