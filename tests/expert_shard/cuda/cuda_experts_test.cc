#include "expert_shard/cuda/cuda_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "expert_shard/cuda/open_cuda_experts.h"
#include "tests/support/test_shard.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;

Qwen3Config Fp8Moe() {
  Qwen3Config config = TinyMoeConfig();
  config.hidden_size = 128;
  config.moe_intermediate_size = 128;
  config.quantization = WeightQuantization::kFp8Block128;
  return config;
}

class CudaExpertsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::DeviceCount() == 0) GTEST_SKIP() << "SKIPPED: no GPU here, no CUDA expert was run";
  }

  static DeviceExpertsRequest Request(const TestModel& model, std::vector<int> experts) {
    DeviceExpertsRequest request;
    request.device = "cuda";
    request.config = &model.config();
    request.checkpoint = &model.checkpoint();
    request.expert_ids = std::move(experts);
    request.say = [](absl::string_view) {};
    return request;
  }

  static std::unique_ptr<ExpertRunner> Open(const DeviceExpertsRequest& request) {
    auto runner = OpenCudaExperts(request);
    CHECK(runner.ok()) << runner.status();
    return *std::move(runner);
  }

  static std::vector<BFloat16> Run(ExpertRunner& runner, int layer,
                                   const std::vector<BFloat16>& rows,
                                   const std::vector<uint32_t>& pair_rows,
                                   const std::vector<uint32_t>& pair_experts) {
    std::vector<BFloat16> output(pair_rows.size() * runner.hidden_size());
    EXPECT_OK(runner.Run(layer, rows.data(),
                         static_cast<int64_t>(rows.size()) / runner.hidden_size(), pair_rows,
                         pair_experts, output.data()));
    return output;
  }
};

bool SameBits(const BFloat16* a, const BFloat16* b, int64_t count) {
  return std::memcmp(a, b, count * sizeof(BFloat16)) == 0;
}

TEST_F(CudaExpertsTest, ComputesWhatTheCpuComputes) {
  for (const Qwen3Config& config : {TinyMoeConfig(), Fp8Moe()}) {
    TestModel model(config);
    const std::vector<int> experts = {1, 4, 6};
    const auto device = Open(Request(model, experts));
    const auto host = model.LoadRunner(experts);
    EXPECT_EQ(device->expert_ids(), experts);
    EXPECT_TRUE(device->Holds(1, 4));
    EXPECT_FALSE(device->Holds(1, 5));
    // Row 1 of four is used by nobody, expert 4 by none of these.
    const auto rows = RandomRows(4, config.hidden_size, 5);
    const std::vector<uint32_t> pair_rows = {3, 0, 2, 2}, pair_experts = {1, 1, 1, 6};
    for (const int layer : {0, 1}) {
      const auto actual = Run(*device, layer, rows, pair_rows, pair_experts);
      const auto expected = Run(*host, layer, rows, pair_rows, pair_experts);
      float largest = 0;
      for (const BFloat16 value : expected) largest = std::max(largest, std::fabs(ToFloat(value)));
      ASSERT_GT(largest, 0.01f);
      for (size_t i = 0; i < expected.size(); ++i) {
        // Both round intermediates and result to BF16 (2^-9), from sums taken in other orders: here
        // and there the other way.
        EXPECT_NEAR(ToFloat(actual[i]), ToFloat(expected[i]), largest * 0x1p-6f) << i;
      }
    }
  }
}

TEST_F(CudaExpertsTest, APairDependsOnItsRowAndExpertAlone) {
  TestModel model(TinyMoeConfig());
  const int64_t hidden = model.config().hidden_size;
  const auto all = Open(Request(model, model.AllExperts()));
  const auto some = Open(Request(model, {2, 5}));
  const auto shared = some->Share();
  ASSERT_OK(shared);
  const auto rows = RandomRows(70, hidden, 9);
  // Seventy rows of expert 2 and forty of 5: the tiled kernel runs what the skinny one does below.
  std::vector<uint32_t> pair_rows, pair_experts;
  for (uint32_t r = 0; r < 70; ++r) pair_rows.push_back(r), pair_experts.push_back(2);
  for (uint32_t r = 10; r < 50; ++r) pair_rows.push_back(r), pair_experts.push_back(5);
  const auto expected = Run(*all, 1, rows, pair_rows, pair_experts);
  for (ExpertRunner* const runner : {some.get(), shared->get()}) {
    const auto together = Run(*runner, 1, rows, pair_rows, pair_experts);
    EXPECT_TRUE(SameBits(together.data(), expected.data(), together.size()));
    for (const size_t pair : {0, 69, 70, 109}) {
      const auto alone = Run(*runner, 1, rows, {pair_rows[pair]}, {pair_experts[pair]});
      EXPECT_TRUE(SameBits(alone.data(), expected.data() + pair * hidden, hidden)) << pair;
    }
  }
}

// On Hopper other kernels run what a large batch has then; a small one stays as it was.
TEST_F(CudaExpertsTest, WithoutDeterminismLargeBatchesAreNearToTheSame) {
  for (const Qwen3Config& config : {TinyMoeConfig(), Fp8Moe()}) {
    TestModel model(config);
    DeviceExpertsRequest request = Request(model, {2, 5});
    const auto same = Open(request);
    request.deterministic = false;
    const auto other = Open(request);
    const auto rows = RandomRows(70, config.hidden_size, 9);
    std::vector<uint32_t> pair_rows, pair_experts;
    for (const uint32_t expert : {2, 5}) {
      for (uint32_t r = 0; r < 65; ++r) pair_rows.push_back(r), pair_experts.push_back(expert);
    }
    const auto expected = Run(*same, 0, rows, pair_rows, pair_experts);
    const auto actual = Run(*other, 0, rows, pair_rows, pair_experts);
    float largest = 0;
    for (const BFloat16 value : expected) largest = std::max(largest, std::fabs(ToFloat(value)));
    ASSERT_GT(largest, 0.01f);
    for (size_t i = 0; i < expected.size(); ++i) {
      // As in ComputesWhatTheCpuComputes.
      EXPECT_NEAR(ToFloat(actual[i]), ToFloat(expected[i]), largest * 0x1p-6f) << i;
    }
    const auto few = Run(*other, 0, rows, {0, 1}, {2, 5});
    EXPECT_TRUE(SameBits(few.data(), Run(*same, 0, rows, {0, 1}, {2, 5}).data(), few.size()));
  }
}

TEST_F(CudaExpertsTest, DummyExpertsAreTheSameInEveryProcess) {
  for (const Qwen3Config& config : {TinyMoeConfig(), Fp8Moe()}) {
    TestModel model(config);
    DeviceExpertsRequest request = Request(model, model.AllExperts());
    request.checkpoint = nullptr;
    const auto all = Open(request);
    request.expert_ids = {3};
    const auto one = Open(request);
    const auto rows = RandomRows(2, config.hidden_size, 3);
    const auto first = Run(*all, 0, rows, {0, 1, 1}, {2, 3, 4});
    const auto second = Run(*one, 0, rows, {1}, {3});
    const int64_t hidden = config.hidden_size;
    EXPECT_TRUE(SameBits(first.data() + hidden, second.data(), hidden));
    EXPECT_FALSE(SameBits(first.data() + hidden, first.data() + 2 * hidden, hidden));
  }
}

TEST_F(CudaExpertsTest, RefusesWhatIsNotHere) {
  TestModel model(TinyMoeConfig());
  const auto runner = Open(Request(model, {1}));
  const auto rows = RandomRows(1, model.config().hidden_size, 3);
  std::vector<BFloat16> output(rows.size());
  EXPECT_THAT(runner->Run(0, rows.data(), 1, std::vector<uint32_t>{0}, std::vector<uint32_t>{2},
                          output.data()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("is not held here")));
  EXPECT_THAT(OpenCudaExperts(Request(model, {8})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expert id is 8")));
}

TEST_F(CudaExpertsTest, SaysWhatDoesNotFit) {
  TestModel model(TinyMoeConfig());
  DeviceExpertsRequest request = Request(model, {0, 1});
  request.memory_utilization = 1e-6;
  EXPECT_THAT(OpenCudaExperts(request),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("experts 0.00 GB"), HasSubstr("workspace"),
                             HasSubstr("1e-06 (--gpu_memory_utilization)"))));
}

TEST_F(CudaExpertsTest, LoadingCanBeGivenUp) {
  TestModel model(TinyMoeConfig());
  DeviceExpertsRequest request = Request(model, {0, 1});
  size_t most = 0;
  request.progress = [&](size_t done, size_t total) {
    EXPECT_LE(done, total);
    most = done;
    return false;
  };
  EXPECT_THAT(OpenCudaExperts(request), StatusIs(absl::StatusCode::kCancelled, HasSubstr("")));
  EXPECT_GT(most, 0u);
}

}  // namespace
}  // namespace conclave
