#include "worker/cuda/cuda_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/cuda/runtime.h"
#include "tests/support/test_shard.h"
#include "tests/worker/cuda/cuda_models.h"
#include "worker/kv_cache.h"
#include "worker/local_expert_exchange.h"

#if defined(CONCLAVE_CUDA_EMULATION)
#include "tests/support/use_cublaslt_stand_in.h"
#endif

namespace conclave {
namespace {

constexpr int64_t kBlocks = 64;

// One model's decoders, on the CPU and on the device, each with its own KV cache.
class Decoders {
 public:
  Decoders(const Qwen3Config& config, bool graphs, bool experts_on_device,
           bool deterministic = true)
      : model_(config), host_cache_(config, kBlocks) {
    const Qwen3Config& c = model_.config();
    absl::StatusOr<WorkerWeights> weights = LoadWorkerWeights(
        model_.checkpoint(), c, WeightDtype::kBf16, device_.pool, [](int, int) {});
    EXPECT_OK(weights);
    host_weights_ = *std::move(weights);
    if (c.num_experts > 0) {
      experts_ = std::make_unique<LocalExpertExchange>(c, model_.LoadRunner(model_.AllExperts()));
    }
    host = std::make_unique<Decoder>(c, host_weights_, host_cache_, device_, experts_.get());
    const bool with_experts = c.num_experts > 0 && experts_on_device;
    int64_t loaded = 0, total = 0;
    absl::StatusOr<CudaWeights> device_weights = LoadCudaWeights(
        &model_.checkpoint(), c, with_experts ? model_.AllExperts() : std::vector<int>(),
        [&](size_t done, size_t all) {
          loaded = static_cast<int64_t>(done);
          total = static_cast<int64_t>(all);
          return true;
        });
    EXPECT_OK(device_weights);
    EXPECT_GT(loaded, 0);
    EXPECT_LE(loaded, total);
    CudaDecoderOptions options;
    options.num_kv_blocks = kBlocks;
    options.max_context = kBlocks * limits::kKvBlockTokens;
    options.max_running = 48;
    options.max_step_tokens = 128;
    options.graphs = graphs;
    options.deterministic = deterministic;
    options.compute_major = 9;
    absl::StatusOr<std::unique_ptr<CudaDecoder>> made =
        CudaDecoder::Create(c, *std::move(device_weights), options,
                            with_experts || c.num_experts == 0 ? nullptr : experts_.get());
    EXPECT_OK(made);
    device = *std::move(made);
  }

  // Logits of every row asked for.
  std::vector<float> Run(StepDecoder& decoder, const StepBatch& batch) {
    EXPECT_OK(decoder.Forward(batch));
    std::vector<float> logits(batch.logit_rows.size() * model_.config().vocab_size);
    if (!logits.empty()) {
      EXPECT_OK(decoder.Logits(0, static_cast<int64_t>(batch.logit_rows.size()), logits.data()));
    }
    return logits;
  }

  std::unique_ptr<Decoder> host;
  std::unique_ptr<CudaDecoder> device;

 private:
  TestModel model_;
  ThreadPool pool_{2};
  Device device_{DetectCpuIsa(), &pool_};
  WorkerWeights host_weights_;
  KvCache host_cache_;
  std::unique_ptr<ExpertExchange> experts_;
};

// Sequences whose tokens are made up, each with block table entries of its own, 20 blocks apart.
struct Tokens {
  std::vector<int32_t> tables[3];
  Tokens() {
    for (int i = 0; i < 3; ++i) {
      for (int b = 0; b < 20; ++b) tables[i].push_back((b * 7 % 20) * 3 + i);
    }
  }

  // Adds `count` tokens of sequence `index` from `first` on; `all` asks for every row's logits.
  void Add(StepBatch& batch, int index, int64_t first, int64_t count, bool all = false) const {
    const auto row = static_cast<int64_t>(batch.ids.size());
    batch.sequences.push_back({row, count, first, tables[index].data()});
    for (int64_t p = first; p < first + count; ++p) {
      batch.ids.push_back(static_cast<uint32_t>((p * 37 + index * 11 + p * p) % 250));
      batch.positions.push_back(static_cast<int32_t>(p));
      batch.slot_mapping.push_back(int64_t{tables[index][p / 16]} * 16 + p % 16);
      if (all || p == first + count - 1) batch.logit_rows.push_back(row + p - first);
    }
  }
};

void ExpectNear(const std::vector<float>& actual, const std::vector<float>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  float worst = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_TRUE(std::isfinite(actual[i])) << i;
    worst = std::max(worst, std::fabs(actual[i] - expected[i]));
  }
  // Logits are near 1 in size. Activations are rounded to BF16 (2^-9) some ten times on the way
  // through two layers, here and there the other way: 10 * 2^-9 = 0.02, and attention's weights on
  // top. A wrong rope, mask or expert gives differences near 1.
  EXPECT_LT(worst, 0.06f);
}

// With activations in FP8, which rounds them to 3 bits: off by up to 1/16 and in the mean by 1/40,
// before each of the 8 products of two layers.
void ExpectNearInFp8(const std::vector<float>& actual, const std::vector<float>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  double squares = 0, worst = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_TRUE(std::isfinite(actual[i])) << i;
    const double error = std::fabs(actual[i] - expected[i]);
    squares += error * error;
    worst = std::max(worst, error);
  }
  // Of logits near 1: sqrt(8) / 40 = 0.07, and attention's weights on top. The worst of thousands
  // is five times that, or a little more. With a scale in a wrong place both are above 1.
  EXPECT_LT(std::sqrt(squares / static_cast<double>(actual.size())), 0.12);
  EXPECT_LT(worst, 0.7);
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_F(CudaDecoderTest, LogitsAreTheCpus) {
  for (const Qwen3Config& config : {Dense(), AllExperts(Moe()), AllExperts(Fp8Moe())}) {
    for (const bool here : {true, false}) {
      if (config.num_experts == 0 && !here) continue;
      Decoders decoders(config, /*graphs=*/true, here);
      const Tokens tokens;
      // Two prompts, then a decode beside the next chunk of a prompt, then decodes alone.
      StepBatch first, second, third;
      tokens.Add(first, 0, 0, 40, true);
      tokens.Add(first, 1, 0, 5);
      tokens.Add(second, 0, 40, 1);
      tokens.Add(second, 1, 5, 30);
      tokens.Add(third, 0, 41, 1);
      tokens.Add(third, 1, 35, 1);
      tokens.Add(third, 2, 0, 1);
      for (const StepBatch* const batch : {&first, &second, &third}) {
        ExpectNear(decoders.Run(*decoders.device, *batch), decoders.Run(*decoders.host, *batch));
      }
      EXPECT_EQ(decoders.device->num_graphs(), here ? 1u : 0u);
    }
  }
}

// Whole, in chunks, token by token, in company, by graph and without: the same bits.
TEST_F(CudaDecoderTest, ARowDependsOnItsSequenceAlone) {
  for (const Qwen3Config& config : {Dense(), Moe()}) {
    Decoders plain(config, /*graphs=*/false, true);
    const Tokens tokens;
    StepBatch whole;
    tokens.Add(whole, 0, 0, 70, true);
    const std::vector<float> expected = plain.Run(*plain.device, whole);
    const auto vocab = static_cast<size_t>(config.vocab_size);

    Decoders graphed(config, /*graphs=*/true, true);
    std::vector<float> actual;
    for (const auto& [first, count] :
         {std::pair<int64_t, int64_t>{0, 17}, {17, 1}, {18, 40}, {58, 1}, {59, 1}, {60, 10}}) {
      StepBatch batch;
      tokens.Add(batch, 1, first, count);  // another sequence beside it, in front
      tokens.Add(batch, 0, first, count, true);
      const std::vector<float> logits = graphed.Run(*graphed.device, batch);
      actual.insert(actual.end(), logits.end() - count * vocab, logits.end());
    }
    EXPECT_EQ(graphed.device->num_graphs(), 1u);  // of two rows
    EXPECT_TRUE(SameBits(actual, expected));
  }
}

// With large products by cuBLASLt: its stand-in on the emulator, itself on a GPU.
class LibraryDecoderTest : public CudaDecoderTest {
 protected:
  void SetUp() override {
    CudaDecoderTest::SetUp();
#if !defined(CONCLAVE_CUDA_EMULATION)
    if (!cuda::CublasLtLibrary::Get().ok()) GTEST_SKIP() << "SKIPPED: no cuBLASLt here";
#endif
  }
#if defined(CONCLAVE_CUDA_EMULATION)
  int64_t products() const { return stand_in_.counts().products; }
  int64_t fp8_products() const { return stand_in_.counts().fp8_products; }
  const cuda::CublasLtStandIn stand_in_;
#endif
};

TEST_F(LibraryDecoderTest, LogitsAreTheCpus) {
  for (const Qwen3Config& config : {Dense(), AllExperts(Moe()), Fp8Dense()}) {
    Decoders decoders(config, /*graphs=*/true, true, /*deterministic=*/false);
    const Tokens tokens;
    // Prompts of more rows than our kernels keep, a whole number of fours and not, enough for wgmma
    // in experts that every token goes to, then few rows.
    StepBatch first, second, third;
    tokens.Add(first, 0, 0, 65, true);
    tokens.Add(first, 1, 0, 5);
    tokens.Add(second, 1, 5, 36);
    tokens.Add(third, 0, 65, 1);
    tokens.Add(third, 1, 41, 1);
    const bool fp8 = config.quantization == WeightQuantization::kFp8Block128;
#if defined(CONCLAVE_CUDA_EMULATION)
    const int64_t products_before = products(), fp8_before = fp8_products();
#endif
    for (const StepBatch* const batch : {&first, &second, &third}) {
      const std::vector<float> actual = decoders.Run(*decoders.device, *batch);
      const std::vector<float> expected = decoders.Run(*decoders.host, *batch);
      fp8 ? ExpectNearInFp8(actual, expected) : ExpectNear(actual, expected);
    }
#if defined(CONCLAVE_CUDA_EMULATION)
    // Two layers of two steps: qkv and o, in a dense model gate_up and down too, then the LM head
    // of 64 of the first step's 66 rows, which is in BF16.
    const int64_t layers = config.num_experts > 0 ? 8 : 16;
    EXPECT_EQ(products() - products_before, layers + 1);
    EXPECT_EQ(fp8_products() - fp8_before, fp8 ? layers : 0);
#endif
  }
}

TEST_F(LibraryDecoderTest, GraphsAreRecordedOnceTheLibraryHasChosen) {
  for (const Qwen3Config& config : {Dense(), Fp8Dense()}) {
    Decoders decoders(config, /*graphs=*/true, true, /*deterministic=*/false);
    std::vector<int32_t> tables(40);
    std::iota(tables.begin(), tables.end(), 0);
    std::vector<float> expected;
    for (int step = 0; step < 3; ++step) {
      // 40 sequences of a block each: every step writes the same token at the same place.
      StepBatch batch;
      for (int i = 0; i < 40; ++i) {
        batch.sequences.push_back({i, 1, 0, &tables[i]});
        batch.ids.push_back(static_cast<uint32_t>(i * 5));
        batch.positions.push_back(0);
        batch.slot_mapping.push_back(int64_t{i} * 16);
        batch.logit_rows.push_back(i);
      }
#if defined(CONCLAVE_CUDA_EMULATION)
      const int64_t choices = stand_in_.counts().choices;
#endif
      const std::vector<float> logits = decoders.Run(*decoders.device, batch);
#if defined(CONCLAVE_CUDA_EMULATION)
      EXPECT_EQ(stand_in_.counts().choices > choices, step == 0);
      EXPECT_TRUE(step == 0 || SameBits(logits, expected));
#endif
      EXPECT_EQ(decoders.device->num_graphs(), step == 0 ? 0u : 1u);
      if (step > 0) ExpectNear(logits, expected);
      expected = logits;
    }
  }
}

TEST_F(LibraryDecoderTest, ItsWorkspaceIsCounted) {
  const Qwen3Config config = Fp8Dense();
  CudaDecoderOptions options;
  options.num_kv_blocks = 8;
  options.max_context = 64;
  options.max_running = 2;
  options.max_step_tokens = 30;
  const int64_t without = CudaWorkspaceBytes(config, options);
  options.deterministic = false;
  // 32 MiB of the library's own, 32 rows of 512 bytes and their 4 scales.
  EXPECT_EQ(CudaWorkspaceBytes(config, options) - without, (32 << 20) + 32 * (512 + 4 * 4));
}

}  // namespace
}  // namespace conclave
