#include "worker/cuda/cuda_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>

#include "expert_shard/cuda/open_cuda_experts.h"
#include "kernels/cuda/runtime.h"
#include "tests/support/test_shard.h"
#include "tests/support/test_worker.h"
#include "worker/cuda/open_cuda_decoder.h"
#include "worker/kv_cache.h"
#include "worker/local_expert_exchange.h"

namespace conclave {
namespace {

using testing::HasSubstr;

Qwen3Config Dense() {
  Qwen3Config config = TinyDenseConfig();
  config.head_dim = 32;
  return config;
}
Qwen3Config Moe() {
  Qwen3Config config = TinyMoeConfig();
  config.head_dim = 64;
  return config;
}
// Every expert for every token. Where experts are chosen, a gate logit that is rounded otherwise
// may choose another one and change everything after it: right, and not to be compared.
Qwen3Config AllExperts(Qwen3Config config) {
  config.num_experts_per_tok = config.num_experts;
  return config;
}
// Experts, o_proj in FP8; k_proj has too few rows for blocks of its own, so that qkv_proj is
// widened.
Qwen3Config Fp8Moe() {
  Qwen3Config config = Moe();
  config.hidden_size = 128;
  config.moe_intermediate_size = 128;
  config.quantization = WeightQuantization::kFp8Block128;
  return config;
}

class CudaDecoderTest : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::DeviceCount() == 0) GTEST_SKIP() << "SKIPPED: no GPU here, no CUDA decoder was run";
  }
};

constexpr int64_t kBlocks = 64;

// One model's decoders, on the CPU and on the device, each with its own KV cache.
class Decoders {
 public:
  Decoders(const Qwen3Config& config, bool graphs, bool experts_on_device)
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
    options.max_running = 16;
    options.max_step_tokens = 128;
    options.graphs = graphs;
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

class CudaWorkerTest : public CudaDecoderTest {
 protected:
  static WorkerRuntimeOptions OnDevice(const std::string& dir) {
    WorkerRuntimeOptions options = SmallWorker(dir);
    options.device = "cuda";
    options.max_running = 8;
    options.max_step_tokens = 64;
    options.open_device = OpenCudaDecoder;
    return options;
  }

  static v1::TokenRequest Request(int i) {
    return MakeRequest(absl::StrCat("r", i), 1 + i * 25, 6 + i);
  }

  static std::vector<std::vector<uint32_t>> Generate(const WorkerRuntimeOptions& options,
                                                     bool host_draws = false) {
    TestWorker worker(options);
    return Generate(worker, host_draws);
  }

  static std::vector<std::vector<uint32_t>> Generate(TestWorker& worker, bool host_draws = false) {
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (int i = 0; i < 5; ++i) {
      v1::TokenRequest request = Request(i);
      if (i == 3) {
        request.mutable_sampling()->set_temperature(0.8f);
        request.mutable_sampling()->set_top_k(20);
        request.mutable_sampling()->set_repetition_penalty(1.2f);
      }
      // One row that wants its log probability takes the step's logits to the host.
      request.mutable_sampling()->set_logprobs(host_draws && i == 0);
      sinks.push_back(worker.Submit(request));
    }
    std::vector<std::vector<uint32_t>> ids;
    for (const auto& sink : sinks) {
      EXPECT_OK(sink->Wait());
      ids.push_back(sink->ids());
    }
    return ids;
  }
};

// Greedy, each id must be the CPU's, up to a place where the CPU's two best ids nearly tie.
TEST_F(CudaWorkerTest, GeneratesTheCpusTokens) {
  for (const Qwen3Config& config : {Dense(), AllExperts(Moe()), AllExperts(Fp8Moe())}) {
    const TestModel model(config);
    WorkerRuntimeOptions on_cpu = OnDevice(model.dir());
    on_cpu.device = "cpu";
    TestWorker host(on_cpu), device(OnDevice(model.dir()));
    int num_same = 0;
    for (int i = 0; i < 5; ++i) {
      v1::TokenRequest request = Request(i);
      const std::vector<uint32_t> actual = device.Run(request);
      request.mutable_sampling()->set_logprobs(true);
      request.mutable_sampling()->set_top_logprobs(2);
      const auto sink = host.Submit(request);
      ASSERT_OK(sink->Wait());
      const std::vector<uint32_t> expected = sink->ids();
      std::vector<v1::TokenLogprobs> logprobs;
      for (const v1::TokenEvent& event : sink->events()) {
        logprobs.insert(logprobs.end(), event.logprobs().begin(), event.logprobs().end());
      }
      ASSERT_EQ(actual.size(), expected.size());
      ASSERT_EQ(logprobs.size(), expected.size());
      size_t at = 0;
      while (at < actual.size() && actual[at] == expected[at]) ++at;
      num_same += static_cast<int>(at);
      if (at == actual.size()) continue;
      EXPECT_EQ(actual[at], logprobs[at].top(1).id());
      // Both logits may be off by what ExpectNear allows.
      EXPECT_LT(logprobs[at].top(0).logprob() - logprobs[at].top(1).logprob(), 0.12f);
    }
    EXPECT_GT(num_same, 20);  // of 40
  }
}

// The emulator aborts on a kernel that does not wait for the one before it.
TEST_F(CudaWorkerTest, ProgrammaticLaunchesChangeNoToken) {
  ASSERT_OK_AND_ASSIGN(const cuda::DeviceInfo info, cuda::QueryDevice(0));
  if (info.compute_major < 9) GTEST_SKIP() << "SKIPPED: needs a Hopper GPU";
  for (const Qwen3Config& config : {Dense(), Moe()}) {
    const TestModel model(config);
    WorkerRuntimeOptions options = OnDevice(model.dir());
    const std::vector<std::vector<uint32_t>> expected = Generate(options);
    options.programmatic_launch = true;
    EXPECT_EQ(Generate(options), expected);
  }
}

TEST_F(CudaWorkerTest, DevicesAndHostsSamplersDrawTheSame) {
  const TestModel model(Moe());
  EXPECT_EQ(Generate(OnDevice(model.dir()), /*host_draws=*/true), Generate(OnDevice(model.dir())));
}

TEST_F(CudaWorkerTest, ExpertsOnAShardGiveTheSameTokens) {
  TestModel model(Moe());
  TestShard shard(model, model.AllExperts());
  WorkerRuntimeOptions remote = OnDevice(model.dir());
  remote.shards = {shard.target()};
  EXPECT_EQ(Generate(remote), Generate(OnDevice(model.dir())));
}

// The shard's experts are on the device too: there they run in a process of their own.
TEST_F(CudaWorkerTest, ExpertsOnACudaShardGiveTheSameTokens) {
  for (const Qwen3Config& config : {Moe(), Fp8Moe()}) {
    TestModel model(config);
    auto runner = OpenCudaExperts({.device = "cuda",
                                   .config = &model.config(),
                                   .checkpoint = &model.checkpoint(),
                                   .expert_ids = model.AllExperts(),
                                   .say = [](absl::string_view) {}});
    ASSERT_OK(runner);
    TestShard shard(*std::move(runner), model, model.fingerprint());
    WorkerRuntimeOptions remote = OnDevice(model.dir());
    remote.shards = {shard.target()};
    EXPECT_EQ(Generate(remote), Generate(OnDevice(model.dir())));
  }
}

// Half of the experts on the worker's device, the other half on a CUDA shard.
TEST_F(CudaWorkerTest, LocalAndRemoteExpertsTogetherGiveTheSameTokens) {
  for (const Qwen3Config& config : {Moe(), Fp8Moe()}) {
    TestModel model(config);
    auto runner = OpenCudaExperts({.device = "cuda",
                                   .config = &model.config(),
                                   .checkpoint = &model.checkpoint(),
                                   .expert_ids = {0, 2, 3, 6},
                                   .say = [](absl::string_view) {}});
    ASSERT_OK(runner);
    TestShard shard(*std::move(runner), model, model.fingerprint());
    WorkerRuntimeOptions mixed = OnDevice(model.dir());
    mixed.shards = {shard.target()};
    mixed.local_experts.list = "1,4-5,7";
    EXPECT_EQ(Generate(mixed), Generate(OnDevice(model.dir())));
    EXPECT_GT(shard.batcher().pairs_computed(), 0);
  }
}

// The layout of several cards: each process is a worker, and the shard of the other.
TEST_F(CudaWorkerTest, TwoWorkersServeEachOther) {
  TestModel model(Moe());
  const TempDir sockets;
  const std::string a_address = "unix:" + sockets.File("a"),
                    b_address = "unix:" + sockets.File("b");
  const std::vector<std::vector<uint32_t>> expected = Generate(OnDevice(model.dir()));
  WorkerRuntimeOptions a = OnDevice(model.dir()), b = a;
  a.local_experts.list = "0-3";
  a.shards = {b_address};
  b.local_experts.list = "4-7";
  b.shards = {a_address};
  TestWorker worker_a(a), worker_b(b);
  TestShard shard_a(worker_a.runtime().TakeServedExperts(), model, model.fingerprint(), a_address);
  TestShard shard_b(worker_b.runtime().TakeServedExperts(), model, model.fingerprint(), b_address);
  std::vector<std::vector<uint32_t>> from_b;
  std::thread other([&] { from_b = Generate(worker_b); });
  EXPECT_EQ(Generate(worker_a), expected);
  other.join();
  EXPECT_EQ(from_b, expected);
}

TEST_F(CudaWorkerTest, ExpertsThatNobodyHoldsAreListed) {
  const TestModel model(Moe());
  WorkerRuntimeOptions options = OnDevice(model.dir());
  options.local_experts.list = "0-3,6";
  EXPECT_THAT(WorkerRuntime::Open(options),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("local_experts is 0-3,6, want experts 4-5,7 too")));
  options.shards = {"127.0.0.1:1"};
  TestWorker worker(options);
  EXPECT_THAT(
      worker.runtime().experts()->Ready(),
      StatusIs(absl::StatusCode::kUnavailable, HasSubstr("serves experts 4-5,7 of layer 0")));
}

TEST_F(CudaWorkerTest, DummyWeightsNeedTheConfigAlone) {
  const TempDir dir;
  dir.Write("config.json", FormatQwen3Config(Fp8Moe()));
  WorkerRuntimeOptions options = OnDevice(dir.path());
  options.load_format = "dummy";
  const std::vector<std::vector<uint32_t>> ids = Generate(options);
  EXPECT_EQ(Generate(options), ids);  // seeded
  // And a shard's made-up experts are the worker's.
  const Qwen3Config config = Fp8Moe();
  TestModel unused(config);
  options.local_experts.list = "0-3";
  WorkerRuntimeOptions other = options;
  const TempDir sockets;
  options.shards = {"unix:" + sockets.File("b")};
  other.local_experts.list = "4-7";
  other.shards = {"unix:" + sockets.File("a")};
  TestWorker worker(options), holder(other);
  TestShard shard(holder.runtime().TakeServedExperts(), unused, DummyFingerprint(config),
                  options.shards[0]);
  EXPECT_EQ(Generate(worker), ids);
  options.device = "cpu";
  EXPECT_THAT(WorkerRuntime::Open(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("conclave synth")));
}

TEST_F(CudaWorkerTest, SaysWhatDoesNotFit) {
  const TestModel model(Moe());
  WorkerRuntimeOptions options = OnDevice(model.dir());
  Metrics metrics;
  options.kv_cache_tokens = int64_t{1} << 40;
  auto runtime = WorkerRuntime::Open(options);
  ASSERT_OK(runtime);
  EXPECT_THAT((*runtime)->Load(metrics, [](absl::string_view) {}),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       testing::AllOf(HasSubstr("worker weights"), HasSubstr("1099511627776"),
                                      HasSubstr("0.9 (--gpu_memory_utilization)"))));
}

TEST_F(CudaWorkerTest, RefusesShapesItHasNoKernelFor) {
  const TestModel model(TinyMoeConfig());  // head_dim 16
  auto runtime = WorkerRuntime::Open(OnDevice(model.dir()));
  ASSERT_OK(runtime);
  Metrics metrics;
  EXPECT_THAT((*runtime)->Load(metrics, [](absl::string_view) {}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("head_dim on a CUDA device is 16, want 32, 64 or 128")));
}

// Runs anywhere: what a build or a machine without a GPU answers.
TEST(DeviceOptionTest, OneClearErrorWithoutADevice) {
  const TestModel model(Moe());
  WorkerRuntimeOptions options = SmallWorker(model.dir());
  options.device = "cuda";
  EXPECT_THAT(WorkerRuntime::Open(options),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("-DCONCLAVE_CUDA=ON")));
  options.open_device = OpenCudaDecoder;
  options.gpu_memory_utilization = 1.5;
  EXPECT_THAT(WorkerRuntime::Open(options), StatusIs(absl::StatusCode::kInvalidArgument,
                                                     HasSubstr("gpu_memory_utilization is 1.5")));
  options.gpu_memory_utilization = 0.9;
  options.load_format = "zero";
  EXPECT_THAT(WorkerRuntime::Open(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("load_format is zero")));
  options.load_format = "auto";
  if (cuda::DeviceCount() > 0) return;
  auto runtime = WorkerRuntime::Open(options);
  ASSERT_OK(runtime);
  Metrics metrics;
  EXPECT_THAT((*runtime)->Load(metrics, [](absl::string_view) {}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no CUDA device")));
}

}  // namespace
}  // namespace conclave
