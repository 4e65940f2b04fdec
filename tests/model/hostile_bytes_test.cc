// Random damage to files that come from outside: the answer is a status or a consistent model,
// never a crash. The seeds are fixed, so that a failure repeats; run under the asan preset too.
#include <functional>
#include <memory>
#include <random>
#include <string>

#include "model/generation_config.h"
#include "model/qwen3_config.h"
#include "model/safetensors.h"
#include "model/safetensors_header.h"
#include "model/synthetic.h"
#include "tests/model/model_files.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using absl::StatusCode;

// One to four random edits; half of them write what JSON is made of, so that many results parse.
std::string Damage(std::string bytes, std::mt19937& random) {
  constexpr char kJson[] = "0123456789-.eE[]{}:,\"\\ntf";
  const auto below = [&](size_t bound) { return bound == 0 ? 0 : random() % bound; };
  for (size_t edits = 1 + below(4); edits > 0; --edits) {
    const size_t at = below(bytes.size());
    const char byte = below(2) == 0 ? static_cast<char>(random()) : kJson[below(sizeof(kJson) - 1)];
    switch (below(5)) {
      case 0:
        bytes.resize(at);
        break;
      case 1:
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), byte);
        break;
      case 2:
        bytes.erase(at, 1 + below(8));
        break;
      default:
        if (!bytes.empty()) bytes[at] = byte;
    }
  }
  return bytes;
}

// Every byte of every tensor can be read, and tensors lie in the file one after another.
uint64_t SumOfTensors(const SafetensorsFile& file) {
  uint64_t sum = 0;
  for (const auto& [name, view] : file.tensors()) {
    uint64_t elements = 1;
    for (const int64_t dimension : view.shape) {
      EXPECT_GE(dimension, 0) << name;
      elements *= static_cast<uint64_t>(dimension);
    }
    EXPECT_EQ(elements * DTypeSize(view.dtype), view.bytes) << name;
    for (size_t i = 0; i < view.bytes; ++i) sum += view.data[i];
  }
  return sum;
}

TEST(HostileBytesTest, SafetensorsFile) {
  TempDir dir;
  const std::string good = SafetensorsBytes(
      {{"model.norm.weight", DType::kBF16, {4}, std::string(8, 'n')},
       {"model.layers.0.mlp.gate.weight", DType::kF32, {2, 3}, std::string(24, 'g')},
       {"x_scale_inv", DType::kF8E4M3, {5, 1}, std::string(5, 's')}});
  std::mt19937 random(7);
  int opened = 0;
  uint64_t sum = 0;
  for (int round = 0; round < 4000; ++round) {
    const std::string path = dir.Write("model.safetensors", Damage(good, random));
    const auto file = SafetensorsFile::Open(path);
    if (file.ok()) {
      ++opened;
      sum += SumOfTensors(**file);
    } else {
      ASSERT_THAT(file, StatusIs(StatusCode::kDataLoss));
    }
  }
  EXPECT_GT(opened, 100);  // damage to the data alone, or to names, still opens
  EXPECT_GT(sum, 0u);
}

TEST(HostileBytesTest, SafetensorsHeader) {
  std::vector<SafetensorsEntry> entries = {{"a", DType::kBF16, {2, 2}, 0, 0},
                                           {"b", DType::kU8, {3}, 0, 0}};
  const std::string good = FormatSafetensorsHeader(entries).substr(8);
  std::mt19937 random(8);
  for (int round = 0; round < 50000; ++round) {
    const auto header = ParseSafetensorsHeader(Damage(good, random), 11, "file");
    if (!header.ok()) {
      ASSERT_THAT(header, StatusIs(StatusCode::kDataLoss));
      continue;
    }
    uint64_t covered = 0;
    for (const SafetensorsEntry& entry : header->entries) {
      ASSERT_EQ(entry.begin, covered);
      covered = entry.end;
    }
    ASSERT_EQ(covered, 11u);
  }
}

TEST(HostileBytesTest, Index) {
  TempDir dir;
  dir.Write("p1.safetensors", SafetensorsBytes({{"w", DType::kU8, {1}, "x"}}));
  const std::string good = R"({"metadata":{"total_size":1},"weight_map":{"w":"p1.safetensors"}})";
  std::mt19937 random(9);
  for (int round = 0; round < 3000; ++round) {
    dir.Write("model.safetensors.index.json", Damage(good, random));
    const auto checkpoint = Checkpoint::Open(dir.path());
    if (!checkpoint.ok()) {
      ASSERT_THAT(checkpoint, StatusIs(StatusCode::kDataLoss));
    }
  }
}

TEST(HostileBytesTest, Configs) {
  Qwen3Config config = TinyMoeConfig();
  config.rope_scaling = YarnScaling{4, 1024, 1.1, 32, 1, true};
  config.quantization = WeightQuantization::kFp8Block128;
  const std::string good = FormatQwen3Config(config);
  std::mt19937 random(10);
  int parsed = 0;
  for (int round = 0; round < 20000; ++round) {
    const auto damaged = ParseQwen3Config(Damage(good, random));
    if (damaged.ok()) {
      ++parsed;
      ASSERT_OK(damaged->Validate());
    } else {
      ASSERT_THAT(damaged, StatusIs(StatusCode::kInvalidArgument));
    }
    const auto generation =
        ParseGenerationConfig(Damage(R"({"top_k":20,"top_p":0.95,"eos_token_id":[1,2]})", random));
    if (!generation.ok()) {
      ASSERT_THAT(generation, StatusIs(StatusCode::kInvalidArgument));
    }
  }
  EXPECT_GT(parsed, 100);
}

}  // namespace
}  // namespace conclave
