// The prefix cache as a request sees it: the same tokens and logprobs, fewer of them computed.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "tests/support/test_worker.h"

namespace conclave {
namespace {

using testing::HasSubstr;

class PrefixCacheTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new TempDir;
    ASSERT_OK(WriteSyntheticCheckpoint(TinyDenseConfig(), dir_->path() + "/dense"));
    ASSERT_OK(WriteSyntheticCheckpoint(TinyMoeConfig(), dir_->path() + "/moe"));
  }
  static void TearDownTestSuite() { delete dir_; }

  static WorkerRuntimeOptions Moe() { return SmallWorker(dir_->path() + "/moe"); }
  static WorkerRuntimeOptions Dense() { return SmallWorker(dir_->path() + "/dense"); }
  static WorkerRuntimeOptions Without(WorkerRuntimeOptions options) {
    options.prefix_cache = false;
    return options;
  }

  static double Metric(TestWorker& worker, absl::string_view name) {
    for (absl::string_view line : absl::StrSplit(worker.metrics().Text(), '\n')) {
      if (!absl::ConsumePrefix(&line, absl::StrCat(name, " "))) continue;
      double value = 0;
      EXPECT_TRUE(absl::SimpleAtod(line, &value)) << line;
      return value;
    }
    ADD_FAILURE() << "no metric " << name;
    return 0;
  }

  static TempDir* dir_;
};
TempDir* PrefixCacheTest::dir_ = nullptr;

struct Answer {
  std::vector<uint32_t> ids;
  std::vector<float> logprobs;  // of ids and their alternatives
  std::vector<float> prompt_logprobs;
  uint32_t cached = 0;

  bool SameAs(const Answer& other) const {
    return ids == other.ids && logprobs == other.logprobs &&
           prompt_logprobs == other.prompt_logprobs;
  }
};

Answer Ask(TestWorker& worker, const v1::TokenRequest& request) {
  const auto sink = worker.Submit(request);
  EXPECT_OK(sink->Wait());
  Answer answer;
  for (const v1::TokenEvent& event : sink->events()) {
    if (event.started()) answer.cached = event.cached_prompt_tokens();
    for (const v1::TokenLogprobs& logprobs : event.logprobs()) {
      answer.logprobs.push_back(logprobs.logprob());
      for (const auto& top : logprobs.top()) answer.logprobs.push_back(top.logprob());
    }
    answer.prompt_logprobs.insert(answer.prompt_logprobs.end(), event.prompt_logprobs().begin(),
                                  event.prompt_logprobs().end());
  }
  answer.ids = sink->ids();
  return answer;
}

v1::TokenRequest WithLogprobs(v1::TokenRequest request) {
  request.mutable_sampling()->set_logprobs(true);
  request.mutable_sampling()->set_top_logprobs(3);
  return request;
}

// `request` with a prompt of `ids`.
v1::TokenRequest WithPrompt(v1::TokenRequest request, const std::vector<uint32_t>& ids) {
  request.mutable_prompt_ids()->Assign(ids.begin(), ids.end());
  return request;
}

TEST_F(PrefixCacheTest, CachedAndWholePrefillAgreeToTheBit) {
  for (const WorkerRuntimeOptions& options : {Dense(), Moe()}) {
    TestWorker cached(options), whole(Without(options));
    // Prompts that begin alike and part at many places, also inside and at the ends of blocks.
    const v1::TokenRequest base = WithLogprobs(MakeRequest("base", 150, 12));
    ASSERT_TRUE(Ask(cached, base).SameAs(Ask(whole, base)));
    for (const int common : {0, 1, 15, 16, 17, 31, 32, 33, 100, 144, 149, 150}) {
      SCOPED_TRACE(common);
      v1::TokenRequest request = base;
      request.set_request_id(absl::StrCat("common", common));
      for (int i = common; i < 150; ++i) {
        request.set_prompt_ids(i, (base.prompt_ids(i) + 1) % 256);
      }
      if (common % 3 == 1) request.mutable_sampling()->set_temperature(0.9f);
      const Answer answer = Ask(cached, request);
      EXPECT_TRUE(answer.SameAs(Ask(whole, request)));
      // The last token is always computed: 150 tokens are 9 blocks and 6 tokens.
      EXPECT_EQ(answer.cached, static_cast<uint32_t>(common / 16 * 16));
    }
    EXPECT_EQ(Metric(whole, "conclave_worker_prefix_cache_hit_blocks_total"), 0);
  }
}

TEST_F(PrefixCacheTest, WhatWasGeneratedIsCachedToo) {
  TestWorker cached(Moe()), whole(Without(Moe()));
  const v1::TokenRequest first = WithLogprobs(MakeRequest("first", 40, 50));
  const Answer answer = Ask(cached, first);
  std::vector<uint32_t> ids(first.prompt_ids().begin(), first.prompt_ids().end());
  ids.insert(ids.end(), answer.ids.begin(), answer.ids.end());
  ids.insert(ids.end(), {1, 2, 3});
  const v1::TokenRequest second = WithPrompt(WithLogprobs(MakeRequest("second", 1, 20)), ids);
  const Answer cached_answer = Ask(cached, second);
  // Of the first request's 90 tokens the last was never computed: 89 are 5 blocks and 9 tokens.
  EXPECT_EQ(cached_answer.cached, 80u);
  EXPECT_TRUE(cached_answer.SameAs(Ask(whole, second)));
}

TEST_F(PrefixCacheTest, APromptThatIsAllThereStillComputesItsLastToken) {
  TestWorker cached(Dense()), whole(Without(Dense()));
  const v1::TokenRequest request = WithLogprobs(MakeRequest("a", 64, 8));
  const Answer expected = Ask(whole, request);
  EXPECT_TRUE(Ask(cached, request).SameAs(expected));
  const Answer again = Ask(cached, request);
  EXPECT_EQ(again.cached, 48u);
  EXPECT_TRUE(again.SameAs(expected));
  EXPECT_EQ(Metric(cached, "conclave_worker_prefix_cache_queried_blocks_total"), 6);
  EXPECT_EQ(Metric(cached, "conclave_worker_prefix_cache_hit_blocks_total"), 3);
  EXPECT_EQ(Metric(cached, "conclave_worker_cached_prompt_tokens_total"), 48);
  EXPECT_EQ(Metric(cached, "conclave_worker_prompt_tokens_total"), 128);
}

TEST_F(PrefixCacheTest, LogprobsOfThePromptAreComputedWhateverIsCached) {
  TestWorker cached(Moe()), whole(Without(Moe()));
  v1::TokenRequest request = WithLogprobs(MakeRequest("a", 70, 8));
  Ask(cached, request);
  request.set_prompt_logprobs(true);
  const Answer answer = Ask(cached, request);
  EXPECT_EQ(answer.cached, 0u);
  EXPECT_EQ(answer.prompt_logprobs.size(), 69u);
  EXPECT_TRUE(answer.SameAs(Ask(whole, request)));
}

TEST_F(PrefixCacheTest, ManyAtATimeWithOnePromptComputeItOnce) {
  WorkerRuntimeOptions options = Moe();
  options.max_step_tokens = 64;
  TestWorker cached(options), whole(Without(options));
  std::vector<v1::TokenRequest> requests;
  for (int i = 0; i < 8; ++i) {
    v1::TokenRequest request = WithLogprobs(MakeRequest(absl::StrCat("r", i), 200, 10));
    request.set_prompt_ids(199, static_cast<uint32_t>(i));
    requests.push_back(request);
  }
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (const v1::TokenRequest& request : requests) sinks.push_back(cached.Submit(request));
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_OK(sinks[i]->Wait());
    EXPECT_EQ(sinks[i]->ids(), Ask(whole, requests[i]).ids);
  }
  // Each has 12 blocks before its last token. How far the second ones got before they found the
  // first one's depends on when they came; most is found.
  EXPECT_EQ(Metric(cached, "conclave_worker_prefix_cache_queried_blocks_total"), 8 * 12);
  EXPECT_GE(Metric(cached, "conclave_worker_prefix_cache_hit_blocks_total"), 6 * 12);
}

TEST_F(PrefixCacheTest, APreemptedSequenceFindsItsBlocksAgain) {
  WorkerRuntimeOptions options = Dense();
  options.kv_cache_tokens = 160;
  TestWorker cached(options), whole(Without(SmallWorker(options.model_dir)));
  std::vector<v1::TokenRequest> requests;
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < 3; ++i) {
    requests.push_back(WithLogprobs(MakeRequest(absl::StrCat("r", i), 40 + i, 60)));
    sinks.push_back(cached.Submit(requests.back()));
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_OK(sinks[i]->Wait());
    EXPECT_EQ(sinks[i]->ids(), Ask(whole, requests[i]).ids);
  }
  EXPECT_GT(Metric(cached, "conclave_worker_preemptions_total"), 0);
  EXPECT_GT(Metric(cached, "conclave_worker_prefix_cache_evicted_blocks_total"), 0);
}

TEST_F(PrefixCacheTest, ASmallCacheForgetsAndStaysRight) {
  WorkerRuntimeOptions options = Dense();
  options.kv_cache_tokens = 256;
  TestWorker cached(options), whole(Without(SmallWorker(options.model_dir)));
  for (int round = 0; round < 3; ++round) {
    for (int length : {100, 130, 170, 90}) {
      v1::TokenRequest request =
          WithLogprobs(MakeRequest(absl::StrCat("r", round, ".", length), length, 9));
      EXPECT_TRUE(Ask(cached, request).SameAs(Ask(whole, request))) << length;
    }
  }
  EXPECT_GT(Metric(cached, "conclave_worker_prefix_cache_evicted_blocks_total"), 0);
}

// ---- prefill in the background ----

v1::TokenRequest Background(const std::string& id, int length) {
  v1::TokenRequest request = MakeRequest(id, length, 0);
  request.set_prefill_only(true);
  return request;
}

TEST_F(PrefixCacheTest, APrefillInTheBackgroundFillsTheCache) {
  TestWorker cached(Moe()), whole(Without(Moe()));
  const auto sink = cached.Submit(Background("ahead", 120));
  ASSERT_OK(sink->Wait());
  EXPECT_TRUE(sink->events().empty());
  const v1::TokenRequest request = WithLogprobs(MakeRequest("real", 120, 10));
  const Answer answer = Ask(cached, request);
  EXPECT_EQ(answer.cached, 112u);
  EXPECT_TRUE(answer.SameAs(Ask(whole, request)));
  EXPECT_EQ(Metric(cached, "conclave_worker_background_prefill_tokens_total"), 120);
  EXPECT_EQ(Metric(cached, "conclave_worker_prompt_tokens_total"), 120);
  EXPECT_EQ(Metric(cached, "conclave_worker_requests_total{outcome=\"ok\"}"), 1);
}

TEST_F(PrefixCacheTest, RealWorkEndsAPrefillInTheBackground) {
  WorkerRuntimeOptions options = Dense();
  TestWorker worker(options);
  // Far more than the worker computes until the real one comes.
  const auto ahead = worker.Submit(Background("ahead", 4000));
  const auto real = worker.Submit(MakeRequest("real", 30, 500));
  const auto late = worker.Submit(Background("late", 50));
  EXPECT_THAT(ahead->Wait(), StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT(late->Wait(), StatusIs(absl::StatusCode::kAborted));
  ASSERT_OK(real->Wait());
  EXPECT_EQ(real->ids().size(), 500u);
  EXPECT_LT(Metric(worker, "conclave_worker_background_prefill_tokens_total"), 4000);
}

TEST_F(PrefixCacheTest, BackgroundRequestsAreBoundedAndEndWhenDraining) {
  TestWorker worker(Dense());
  const auto submit = [&](const std::string& id, int length) {
    return worker.engine().Submit(Background(id, length), absl::InfiniteFuture(),
                                  std::make_shared<CollectingSink>());
  };
  absl::Status status;
  int accepted = 0;
  for (; accepted < 1000; ++accepted) {
    status = submit(absl::StrCat("a", accepted), 4000);
    if (!status.ok()) break;
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("16")));
  EXPECT_OK(worker.engine().Submit(MakeRequest("real", 3, 2), absl::InfiniteFuture(),
                                   std::make_shared<CollectingSink>()))
      << "they take no place of a real one";
  EXPECT_TRUE(worker.engine().AwaitIdle(absl::Now() + absl::Seconds(60)));
  EXPECT_OK(submit("b", 4000));
  worker.engine().StartDraining();
  EXPECT_TRUE(worker.engine().AwaitIdle(absl::Now() + absl::Seconds(60)));
}

TEST_F(PrefixCacheTest, WithoutACacheThereIsNothingToFill) {
  TestWorker worker(Without(Dense()));
  EXPECT_THAT(worker.engine().Submit(Background("a", 50), absl::InfiniteFuture(),
                                     std::make_shared<CollectingSink>()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("prefix cache is off")));
}

}  // namespace
}  // namespace conclave
