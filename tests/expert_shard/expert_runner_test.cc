#include "expert_shard/expert_runner.h"

#include <cmath>

#include "common/limits.h"
#include "model/weight_catalog.h"
#include "model/weight_reader.h"
#include "tests/support/test_shard.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class ExpertRunnerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { model_ = new TestModel(TinyMoeConfig()); }
  static void TearDownTestSuite() { delete model_; }
  static TestModel* model_;
};
TestModel* ExpertRunnerTest::model_ = nullptr;

// down_proj(silu(gate_proj x) * up_proj x) from the checkpoint's own matrices, in double.
std::vector<double> ExpertByHand(const TestModel& model, int layer, int expert,
                                 const BFloat16* row) {
  const Qwen3Config& config = model.config();
  const auto times = [&](const char* proj, int64_t rows, int64_t cols,
                         const std::vector<double>& x) {
    const auto matrix =
        ReadMatrix(model.checkpoint(), ExpertWeightName(layer, expert, proj), rows, cols);
    EXPECT_OK(matrix);
    std::vector<double> y(static_cast<size_t>(rows), 0);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) y[r] += double{ToFloat(matrix->row(r)[c])} * x[c];
    }
    return y;
  };
  std::vector<double> x(static_cast<size_t>(config.hidden_size));
  for (size_t i = 0; i < x.size(); ++i) x[i] = ToFloat(row[i]);
  const auto gate = times("gate_proj", config.moe_intermediate_size, config.hidden_size, x);
  const auto up = times("up_proj", config.moe_intermediate_size, config.hidden_size, x);
  std::vector<double> inner(gate.size());
  for (size_t i = 0; i < inner.size(); ++i) inner[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return times("down_proj", config.hidden_size, config.moe_intermediate_size, inner);
}

TEST_F(ExpertRunnerTest, ComputesTheCheckpointsExperts) {
  const auto runner = model_->LoadRunner({1, 4, 6});
  const int hidden = model_->config().hidden_size;
  const auto rows = RandomRows(3, hidden, 5);
  const std::vector<uint32_t> pair_rows = {0, 2, 1, 1}, pair_experts = {1, 1, 4, 6};
  std::vector<BFloat16> output(4 * hidden);
  ASSERT_OK(runner->Run(1, rows.data(), 3, pair_rows, pair_experts, output.data()));
  for (size_t p = 0; p < pair_rows.size(); ++p) {
    const auto expected = ExpertByHand(*model_, 1, static_cast<int>(pair_experts[p]),
                                       rows.data() + pair_rows[p] * hidden);
    double largest = 0;
    for (const double value : expected) largest = std::max(largest, std::fabs(value));
    ASSERT_GT(largest, 0.01);
    for (int i = 0; i < hidden; ++i) {
      // BF16 rounds by 2^-9: each of the 32 intermediates once (their errors add to at most about
      // the largest output times 2^-9 times sqrt(32) / 4), the result once.
      EXPECT_NEAR(ToFloat(output[p * hidden + i]), expected[i], largest * 0x1p-7) << p << " " << i;
    }
  }
}

TEST_F(ExpertRunnerTest, HoldsItsExpertsOfSparseLayersOnly) {
  const auto runner = model_->LoadRunner({1, 4});
  EXPECT_TRUE(runner->Holds(0, 1));
  EXPECT_TRUE(runner->Holds(1, 4));
  for (const auto& [layer, expert] :
       std::vector<std::pair<int, int>>{{0, 2}, {2, 1}, {-1, 1}, {0, -1}, {0, 8}, {1'000'000, 1}}) {
    EXPECT_FALSE(runner->Holds(layer, expert)) << layer << " " << expert;
  }
  EXPECT_EQ(runner->expert_ids(), std::vector<int>({1, 4}));
  // 2 layers, 2 experts of 3 matrices [64, 32] of 2 bytes.
  EXPECT_EQ(runner->weight_bytes(), 2u * 2 * 3 * 64 * 32 * 2);
}

TEST_F(ExpertRunnerTest, LayersWithoutExpertsAreSkipped) {
  Qwen3Config config = TinyMoeConfig();
  config.num_hidden_layers = 3;
  config.mlp_only_layers = {1};
  TestModel model(config);
  const auto runner = model.LoadRunner({0});
  EXPECT_TRUE(runner->Holds(0, 0));
  EXPECT_FALSE(runner->Holds(1, 0));
  EXPECT_TRUE(runner->Holds(2, 0));
  const auto rows = RandomRows(1, config.hidden_size, 1);
  std::vector<BFloat16> output(config.hidden_size);
  ASSERT_OK(runner->Run(2, rows.data(), 1, {0}, {0}, output.data()));
  const auto expected = ExpertByHand(model, 2, 0, rows.data());
  EXPECT_NEAR(ToFloat(output[7]), expected[7], 0.02 * (std::fabs(expected[7]) + 0.1));
}

TEST_F(ExpertRunnerTest, ManyPairsGiveTheBitsOfFew) {
  const auto runner = model_->LoadRunner(model_->AllExperts());
  const int hidden = model_->config().hidden_size;
  const int64_t num_rows = limits::kMaxExpertBatchPairs / 2 + 500;
  const auto rows = RandomRows(num_rows, hidden, 2);
  std::vector<uint32_t> pair_rows, pair_experts;
  for (const uint32_t expert : {3u, 5u}) {
    for (int64_t row = 0; row < num_rows; ++row) {
      pair_rows.push_back(static_cast<uint32_t>(row));
      pair_experts.push_back(expert);
    }
  }
  std::vector<BFloat16> together(pair_rows.size() * hidden), alone(hidden);
  ASSERT_OK(runner->Run(0, rows.data(), num_rows, pair_rows, pair_experts, together.data()));
  for (size_t pair = 0; pair < pair_rows.size(); pair += 97) {
    ASSERT_OK(runner->Run(0, rows.data(), num_rows, {pair_rows[pair]}, {pair_experts[pair]},
                          alone.data()));
    ASSERT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + pair * hidden)) << pair;
  }
}

TEST_F(ExpertRunnerTest, RunNamesWhatIsWrong) {
  const auto runner = model_->LoadRunner({1, 4});
  const auto rows = RandomRows(2, model_->config().hidden_size, 1);
  std::vector<BFloat16> output(4 * model_->config().hidden_size);
  const auto run = [&](int layer, std::vector<uint32_t> pair_rows,
                       std::vector<uint32_t> pair_experts) {
    return runner->Run(layer, rows.data(), 2, pair_rows, pair_experts, output.data());
  };
  EXPECT_OK(run(0, {}, {}));
  EXPECT_THAT(run(0, {0, 1}, {1}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(run(0, {2}, {1}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2")));
  EXPECT_THAT(run(0, {0, 0}, {4, 1}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(run(0, {0}, {2}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("expert 2 of layer 0")));
  EXPECT_THAT(run(2, {0}, {1}), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(run(0, {0}, {4'000'000'000u}), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(ExpertRunnerTest, LoadNamesWhatIsWrong) {
  const auto load = [&](const Qwen3Config& config, std::vector<int> experts) {
    return ExpertRunner::Load(model_->checkpoint(), config, experts, WeightDtype::kBf16,
                              model_->device());
  };
  EXPECT_THAT(load(TinyDenseConfig(), {0}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("dense")));
  EXPECT_THAT(load(TinyMoeConfig(), {8}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("8, want 0..7")));
  EXPECT_THAT(load(TinyMoeConfig(), {3, 3}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(load(TinyMoeConfig(), {-1}), StatusIs(absl::StatusCode::kInvalidArgument));
  Qwen3Config wider = TinyMoeConfig();
  wider.moe_intermediate_size *= 2;
  EXPECT_THAT(load(wider, {0}), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("gate_proj")));
  Qwen3Config deeper = TinyMoeConfig();
  deeper.num_hidden_layers = 3;
  EXPECT_THAT(load(deeper, {0}), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("layers.2")));
}

TEST_F(ExpertRunnerTest, LoadTellsItsProgressAndCanBeGivenUp) {
  std::vector<size_t> seen;
  size_t total = 0;
  const Device one_thread{.isa = model_->device().isa};
  ASSERT_OK(ExpertRunner::Load(model_->checkpoint(), model_->config(), {0, 1, 2, 3, 4, 5, 6, 7},
                               WeightDtype::kBf16, one_thread, [&](size_t done, size_t all) {
                                 seen.push_back(done);
                                 total = all;
                                 return true;
                               }));
  // 16 experts in two layers, told of after every 8 that one thread loads.
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[0] * 2, seen[1]);
  EXPECT_EQ(seen[1], total);
  EXPECT_THAT(ExpertRunner::Load(model_->checkpoint(), model_->config(), {0, 1}, WeightDtype::kBf16,
                                 model_->device(), [](size_t, size_t) { return false; }),
              StatusIs(absl::StatusCode::kCancelled));
}

}  // namespace
}  // namespace conclave
