#include "client/bench_summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "client/terminal_plot.h"

namespace conclave {
namespace {

using testing::ElementsAre;

TEST(DistributionTest, InterpolatesBetweenValues) {
  const Distribution values({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(values.Quantile(0), 1);
  EXPECT_DOUBLE_EQ(values.Quantile(0.5), 2.5);
  EXPECT_DOUBLE_EQ(values.Quantile(0.9), 3.7);  // 0.9 * 3 = 2.7: between the third and the fourth
  EXPECT_DOUBLE_EQ(values.Quantile(1), 4);
  EXPECT_DOUBLE_EQ(values.Mean(), 2.5);
  EXPECT_TRUE(std::isnan(Distribution().Quantile(0.5)));
  EXPECT_EQ(Distribution().ToJson().dump(),
            R"({"mean":null,"min":null,"p50":null,"p90":null,"p99":null,"max":null})");
}

constexpr int64_t kMs = 1'000'000;

// Due at 10 ms, sent at 12; ids at 20, 30 and two more at 50; the answer begins with the second.
RequestRecord Finished() {
  RequestRecord record;
  record.arrival = absl::Milliseconds(10);
  record.sent = absl::Milliseconds(12);
  record.tokens = {{20 * kMs, 1}, {30 * kMs, 1}, {50 * kMs, 2}};
  record.first_answer = absl::Milliseconds(30);
  record.finished = absl::Milliseconds(60);
  record.report.mutable_usage()->set_prompt_tokens(100);
  return record;
}

TEST(SummarizeTest, CountsFromTheArrival) {
  LoadResult result;
  result.records = {Finished()};
  result.elapsed = absl::Milliseconds(48);
  const BenchSummary summary = Summarize({}, result);
  EXPECT_THAT(summary.ttft.values(), ElementsAre(10));
  EXPECT_THAT(summary.ttfat.values(), ElementsAre(20));
  EXPECT_THAT(summary.itl.values(), ElementsAre(10, 10, 10)) << "two ids share 20 ms";
  EXPECT_THAT(summary.tpot.values(), ElementsAre(10));
  EXPECT_THAT(summary.e2e.values(), ElementsAre(50));
  EXPECT_THAT(summary.queue.values(), ElementsAre(2));
  EXPECT_EQ(summary.output_tokens, 4);
  EXPECT_EQ(summary.prompt_tokens, 100);
  EXPECT_NEAR(summary.OutputRate(), 4 / 0.048, 1e-9);
  ASSERT_EQ(summary.tokens_per_second.size(), 1u);
  EXPECT_NEAR(summary.tokens_per_second[0], 4 / 0.048, 1e-9);
}

TEST(SummarizeTest, GoodIsWithinEveryLimit) {
  LoadResult result;
  result.records = {Finished()};
  BenchOptions options;
  const auto good = [&](const BenchSlo& slo) {
    options.slo = slo;
    return Summarize(options, result).good;
  };
  EXPECT_EQ(good({}), 1);
  EXPECT_EQ(good({.ttft_ms = 10, .ttfat_ms = 20, .itl_ms = 10}), 1);
  EXPECT_EQ(good({.ttft_ms = 9.9}), 0);
  EXPECT_EQ(good({.ttfat_ms = 19.9}), 0);
  EXPECT_EQ(good({.itl_ms = 9.9}), 0);
}

TEST(SummarizeTest, FailuresHaveNoLatency) {
  LoadResult result;
  result.records = {Finished(), Finished(), Finished()};
  result.records[1].status = absl::ResourceExhaustedError("full");
  result.records[2].status = absl::CancelledError();
  result.records[2].cut_short = true;
  result.elapsed = absl::Milliseconds(2600);
  const BenchSummary summary = Summarize({}, result);
  EXPECT_EQ(summary.completed, 1);
  EXPECT_EQ(summary.failed, 1);
  EXPECT_EQ(summary.cut_short, 1);
  EXPECT_EQ(summary.ttft.values().size(), 1u);
  EXPECT_EQ(summary.output_tokens, 12) << "what came, came";
  EXPECT_EQ(summary.errors.at("RESOURCE_EXHAUSTED"), 1);
  EXPECT_THAT(summary.tokens_per_second, ElementsAre(12, 0, 0));
  result.elapsed = absl::Milliseconds(2400);
  EXPECT_THAT(Summarize({}, result).tokens_per_second, ElementsAre(12, 0)) << "0.4 s is no second";
}

TEST(PlotHistogramTest, StepsByOneTwoFive) {
  const std::vector<double> values = {1.5, 3, 4, 30};
  EXPECT_EQ(PlotHistogram("ms", values, 4),
            "ms\n"
            "    1-2 |## 1\n"
            "    2-5 |#### 2\n"
            "   5-10 |0\n"
            "  10-20 |0\n"
            "  20-50 |## 1\n");
  EXPECT_EQ(PlotHistogram("ms", {}, 4), "");
}

TEST(PlotHistogramTest, NarrowValuesHaveEqualSteps) {
  const std::vector<double> values = {101, 104, 105, 119};
  EXPECT_EQ(PlotHistogram("ms", values, 2),
            "ms\n"
            "  100-105 |## 2\n"
            "  105-110 |# 1\n"
            "  110-115 |0\n"
            "  115-120 |# 1\n");
  EXPECT_EQ(PlotHistogram("ms", std::vector<double>{0, 0}, 2), "ms\n  0-0.002 |## 2\n");
}

}  // namespace
}  // namespace conclave
