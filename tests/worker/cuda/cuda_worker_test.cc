// A whole worker on a device: its tokens, its experts here and elsewhere, its options.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "expert_shard/cuda/open_cuda_experts.h"
#include "tests/support/test_shard.h"
#include "tests/support/test_worker.h"
#include "tests/worker/cuda/cuda_models.h"
#include "worker/cuda/open_cuda_decoder.h"

#if defined(CONCLAVE_CUDA_EMULATION)
#include "tests/support/use_cublaslt_stand_in.h"
#endif

namespace conclave {
namespace {

using testing::HasSubstr;

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

#if defined(CONCLAVE_CUDA_EMULATION)
TEST_F(CudaWorkerTest, LargeProductsAreTheLibrarysIfNotDeterministic) {
  const cuda::CublasLtStandIn stand_in;
  const TestModel model(Dense());
  WorkerRuntimeOptions options = OnDevice(model.dir());
  const int64_t before = stand_in.counts().products;
  Generate(options);
  EXPECT_EQ(stand_in.counts().products, before);
  options.deterministic = false;
  const std::vector<std::vector<uint32_t>> ids = Generate(options);
  EXPECT_GT(stand_in.counts().products, before);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(ids[i].size(), 6u + i);
}
#endif

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
  options.device = "cpu";
  options.deterministic = false;
  EXPECT_THAT(WorkerRuntime::Open(options),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("deterministic on the CPU is false, want true")));
  options.device = "cuda";
  options.deterministic = true;
  if (cuda::DeviceCount() > 0) return;
  auto runtime = WorkerRuntime::Open(options);
  ASSERT_OK(runtime);
  Metrics metrics;
  EXPECT_THAT((*runtime)->Load(metrics, [](absl::string_view) {}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no CUDA device")));
}

}  // namespace
}  // namespace conclave
