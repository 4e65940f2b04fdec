#include "expert_shard/token_batcher.h"

#include <cstring>

#include "absl/synchronization/notification.h"
#include "tests/support/test_shard.h"

namespace conclave {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

// One dispatch and what came of it.
struct Job {
  v1::ExpertDispatch header;
  std::vector<BFloat16> rows;
  absl::Notification done;
  absl::StatusOr<DispatchResult> result = absl::UnknownError("not yet");

  std::vector<BFloat16> Output(int hidden_size) {
    EXPECT_TRUE(done.WaitForNotificationWithTimeout(kPatience));
    EXPECT_OK(result);
    std::vector<BFloat16> output;
    if (!result.ok()) return output;
    for (const ExpertRows& run : result->rows) {
      output.insert(output.end(), run.rows, run.rows + run.num_pairs * hidden_size);
    }
    return output;
  }
  absl::Status Status() {
    EXPECT_TRUE(done.WaitForNotificationWithTimeout(kPatience));
    return result.status();
  }
};

class TokenBatcherTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { model_ = new TestModel(TinyMoeConfig()); }
  static void TearDownTestSuite() { delete model_; }

  int hidden_size() const { return model_->config().hidden_size; }

  void StartBatcher(TokenBatcher::Options options = {}) {
    batcher_ = std::make_unique<TokenBatcher>(runner_.get(), &metrics_, options);
  }

  std::unique_ptr<Job> MakeJob(int layer, int64_t num_rows, uint64_t seed) {
    auto job = std::make_unique<Job>();
    job->rows = RandomRows(num_rows, hidden_size(), seed);
    job->header.set_layer(layer);
    job->header.set_num_rows(static_cast<uint32_t>(num_rows));
    const auto topk = RandomTopk(model_->config(), num_rows, seed);
    const int k = model_->config().num_experts_per_tok;
    for (int expert = 0; expert < model_->config().num_experts; ++expert) {
      for (size_t slot = 0; slot < topk.size(); ++slot) {
        if (topk[slot] != expert) continue;
        job->header.add_pair_rows(static_cast<uint32_t>(slot / k));
        job->header.add_pair_experts(expert);
      }
    }
    return job;
  }

  absl::Status Submit(Job* job, absl::Time deadline = absl::InfiniteFuture(),
                      std::shared_ptr<const std::atomic<bool>> abandoned = nullptr) {
    QueuedDispatch dispatch;
    dispatch.frame.header = job->header;
    const size_t bytes = job->rows.size() * sizeof(BFloat16);
    std::vector<grpc::Slice> slices = {grpc::Slice(job->rows.data(), bytes)};
    dispatch.frame.hidden_states = TensorBytes(std::move(slices), 0, bytes);
    dispatch.deadline = deadline;
    dispatch.abandoned = std::move(abandoned);
    dispatch.done = [this, job](absl::StatusOr<DispatchResult> result) {
      job->result = std::move(result);
      job->done.Notify();
      if (job == blocker_.get()) unblock_.WaitForNotification();
    };
    return batcher_->Submit(std::move(dispatch));
  }

  // Keeps the batcher's thread busy until Unblock, so that what comes in between waits.
  void Block() {
    blocker_ = MakeJob(0, 1, 99);
    ASSERT_OK(Submit(blocker_.get()));
    ASSERT_TRUE(blocker_->done.WaitForNotificationWithTimeout(kPatience));
  }
  void Unblock() { unblock_.Notify(); }

  std::vector<BFloat16> RunAlone(const Job& job) {
    const auto runner = model_->LoadRunner(model_->AllExperts());
    std::vector<BFloat16> output(job.header.pair_rows_size() * hidden_size());
    EXPECT_OK(runner->Run(static_cast<int>(job.header.layer()), job.rows.data(),
                          job.header.num_rows(), job.header.pair_rows(), job.header.pair_experts(),
                          output.data()));
    return output;
  }

  static TestModel* model_;
  Metrics registry_;
  ShardMetrics metrics_{&registry_, model_->config()};
  std::unique_ptr<ExpertRunner> runner_ = model_->LoadRunner(model_->AllExperts());
  std::unique_ptr<Job> blocker_;
  absl::Notification unblock_;
  std::unique_ptr<TokenBatcher> batcher_;
};
TestModel* TokenBatcherTest::model_ = nullptr;

TEST_F(TokenBatcherTest, MergesWhatWaitsForALayerAndChangesNoBit) {
  StartBatcher();
  Block();
  std::vector<std::unique_ptr<Job>> jobs;
  for (int i = 0; i < 6; ++i) jobs.push_back(MakeJob(/*layer=*/i % 2, 1 + i * 5, i));
  for (const auto& job : jobs) ASSERT_OK(Submit(job.get()));
  Unblock();
  for (const auto& job : jobs) EXPECT_TRUE(job->Output(hidden_size()) == RunAlone(*job));
  batcher_->Stop();
  // The blocker, then one batch a layer.
  EXPECT_EQ(metrics_.batches_total.Value(), 3);
  EXPECT_EQ(metrics_.rows_total.Value(), 2 * (1 + 1 + 6 + 11 + 16 + 21 + 26));
  EXPECT_EQ(batcher_->pairs_computed(), 2 * (1 + 1 + 6 + 11 + 16 + 21 + 26));
}

TEST_F(TokenBatcherTest, ABatchHasABound) {
  TokenBatcher::Options options;
  options.max_batch_pairs = 20;  // rows of two pairs each
  StartBatcher(options);
  Block();
  auto large = MakeJob(0, 40, 1), a = MakeJob(0, 6, 2), b = MakeJob(0, 4, 3), c = MakeJob(0, 1, 4);
  for (Job* job : {large.get(), a.get(), b.get(), c.get()}) ASSERT_OK(Submit(job));
  Unblock();
  for (Job* job : {large.get(), a.get(), b.get(), c.get()}) {
    EXPECT_TRUE(job->Output(hidden_size()) == RunAlone(*job));
  }
  batcher_->Stop();
  EXPECT_EQ(metrics_.batches_total.Value(), 4);  // blocker; large alone; a + b; c
}

TEST_F(TokenBatcherTest, FullQueueRefuses) {
  TokenBatcher::Options options;
  options.max_queued_dispatches = 2;
  StartBatcher(options);
  Block();
  auto a = MakeJob(0, 1, 1), b = MakeJob(0, 1, 2), c = MakeJob(0, 1, 3);
  ASSERT_OK(Submit(a.get()));
  ASSERT_OK(Submit(b.get()));
  EXPECT_THAT(Submit(c.get()), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(metrics_.queue_frames.Value(), 2);
  Unblock();
  EXPECT_OK(a->Status());
  EXPECT_OK(b->Status());
  EXPECT_FALSE(c->done.HasBeenNotified());
}

TEST_F(TokenBatcherTest, LateAndAbandonedOnesAreNotComputed) {
  StartBatcher();
  Block();
  auto late = MakeJob(0, 1, 1), abandoned = MakeJob(0, 1, 2), timely = MakeJob(0, 1, 3);
  const auto flag = std::make_shared<std::atomic<bool>>(false);
  ASSERT_OK(Submit(late.get(), absl::Now() - absl::Milliseconds(1)));
  ASSERT_OK(Submit(abandoned.get(), absl::InfiniteFuture(), flag));
  ASSERT_OK(Submit(timely.get(), absl::Now() + kPatience));
  flag->store(true);
  Unblock();
  EXPECT_THAT(late->Status(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(abandoned->Status(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(timely->Output(hidden_size()) == RunAlone(*timely));
  EXPECT_EQ(batcher_->pairs_computed(), 4);  // blocker and timely
}

TEST_F(TokenBatcherTest, StopAnswersWhatWaits) {
  StartBatcher();
  Block();
  auto job = MakeJob(1, 3, 1);
  ASSERT_OK(Submit(job.get()));
  std::thread stopper([&] { batcher_->Stop(); });
  Unblock();
  stopper.join();
  ASSERT_TRUE(job->done.HasBeenNotified());
  EXPECT_OK(job->Status());
  EXPECT_THAT(Submit(job.get()), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(TokenBatcherTest, ReportsTheImbalanceOfALayer) {
  StartBatcher();
  auto job = MakeJob(1, 4, 1);
  job->header.clear_pair_rows();
  job->header.clear_pair_experts();
  for (const uint32_t expert : {2u, 2u, 2u, 5u}) {
    job->header.add_pair_rows(static_cast<uint32_t>(job->header.pair_rows_size()));
    job->header.add_pair_experts(expert);
  }
  ASSERT_OK(Submit(job.get()));
  EXPECT_OK(job->Status());
  batcher_->Stop();
  // 3 pairs at the busiest of 8 experts, 4 / 8 in the mean.
  EXPECT_THAT(registry_.Text(),
              testing::HasSubstr("conclave_shard_expert_imbalance_ratio{layer=\"1\"} 6"));
}

}  // namespace
}  // namespace conclave
