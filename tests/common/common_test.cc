#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_split.h"
#include "common/bfloat16.h"
#include "common/bounded_queue.h"
#include "common/errors.h"
#include "common/log.h"
#include "common/metrics.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

TEST(BFloat16Test, RoundsToNearestEven) {
  EXPECT_EQ(ToBFloat16(1.0f).bits, 0x3f80);
  // 1 + 2^-8 lies halfway between 1 and 1 + 2^-7: the even one is 1.
  EXPECT_EQ(ToBFloat16(1.0f + 0x1p-8f).bits, 0x3f80);
  EXPECT_EQ(ToBFloat16(1.0f + 0x1p-7f + 0x1p-8f).bits, 0x3f82);
  EXPECT_EQ(ToBFloat16(1.0f + 0x1p-8f + 0x1p-20f).bits, 0x3f81);
  EXPECT_EQ(ToFloat(ToBFloat16(-3.5f)), -3.5f);
}

TEST(BFloat16Test, KeepsInfinityAndNan) {
  EXPECT_EQ(ToFloat(ToBFloat16(INFINITY)), INFINITY);
  EXPECT_TRUE(std::isnan(ToFloat(ToBFloat16(NAN))));
  EXPECT_EQ(ToFloat(ToBFloat16(3.4e38f)), INFINITY);  // above the largest BF16 and nearer to 2^128
}

TEST(BoundedQueueTest, RefusesWhenFullAndDrainsAfterClose) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_TRUE(queue.TryPush(2));
  EXPECT_FALSE(queue.TryPush(3));
  EXPECT_EQ(queue.TryPop(), 1);
  queue.Close();
  EXPECT_FALSE(queue.TryPush(4));
  EXPECT_EQ(queue.Pop(), 2);
  EXPECT_EQ(queue.Pop(), std::nullopt);
}

TEST(BoundedQueueTest, PopWaitsForAnItem) {
  BoundedQueue<int> queue(1);
  std::thread producer([&] { queue.TryPush(7); });
  EXPECT_EQ(queue.Pop(absl::Now() + absl::Seconds(30)), 7);
  producer.join();
}

TEST(MetricsTest, ServesWhatWasCounted) {
  Metrics metrics;
  metrics.Counter("conclave_test_things_total", "Things.", {{"mode", "thinking"}}).Increment(3);
  EXPECT_THAT(metrics.Text(), HasSubstr("conclave_test_things_total{mode=\"thinking\"} 3"));
  ASSERT_OK_AND_ASSIGN(const int port, metrics.Serve("127.0.0.1", 0));
  EXPECT_GT(port, 0);
}

TEST(MetricsTest, TakenPortIsAnError) {
  Metrics first, second;
  ASSERT_OK_AND_ASSIGN(const int port, first.Serve("127.0.0.1", 0));
  EXPECT_THAT(second.Serve("127.0.0.1", port),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(std::to_string(port))));
}

TEST(ErrorsTest, SayWhatValueAndAllowed) {
  EXPECT_EQ(errors::OutOfRange("temperature", -1, "0..2").message(),
            "temperature is -1, want 0..2");
  EXPECT_THAT(errors::PromptTooLong(50000, 10, 40960),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("maximum context length")));
  EXPECT_EQ(errors::BadCheckpoint("m.safetensors", "model.norm.weight", "F64", "BF16").message(),
            "m.safetensors: tensor model.norm.weight: found F64, want BF16");
}

TEST(ErrorsTest, ADevicesFailureIsToldFromOtherInternals) {
  const absl::Status failure = errors::DeviceFailure("cudaLaunch failed");
  EXPECT_THAT(failure, StatusIs(absl::StatusCode::kInternal, HasSubstr("cudaLaunch failed")));
  EXPECT_TRUE(errors::IsDeviceFailure(failure));
  EXPECT_FALSE(errors::IsDeviceFailure(absl::InternalError("cudaLaunch failed")));
  EXPECT_FALSE(errors::IsDeviceFailure(absl::OkStatus()));
  EXPECT_THAT(errors::LostDevice("worker", failure),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("cudaLaunch failed")));
  EXPECT_FALSE(errors::IsDeviceFailure(errors::LostDevice("worker", failure)));
}

TEST(LogTest, UnknownLevelIsAnError) {
  EXPECT_THAT(InitLog("test", "loud"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"loud\"")));
  EXPECT_THAT(InitLog("test", "info", "xml"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"xml\"")));
}

// What is written on standard error until the test reads it.
std::string Logged(const char* format, const std::function<void()>& act) {
  testing::internal::CaptureStderr();
  EXPECT_OK(InitLog("test", "info", format));
  act();
  spdlog::default_logger()->flush();
  return testing::internal::GetCapturedStderr();
}

TEST(LogTest, JsonIsOneObjectALine) {
  const std::string lines = Logged("json", [] {
    LOG_INFO("a \"quoted\" {}", "line\nbreak \xff");
    LogEvent("request finished", {{"request_id", "r{}\"1"}, {"trace_id", ""}, {"n", "3"}});
    LOG_DEBUG("below the level");
  });
  std::vector<nlohmann::json> found;
  for (const absl::string_view line : absl::StrSplit(lines, '\n', absl::SkipEmpty())) {
    found.push_back(nlohmann::json::parse(line));
  }
  ASSERT_EQ(found.size(), 2u) << lines;
  EXPECT_EQ(found[0]["message"], "a \"quoted\" line\nbreak \xef\xbf\xbd");
  EXPECT_EQ(found[0]["level"], "info");
  EXPECT_EQ(found[0]["process"], "test");
  EXPECT_EQ(found[1]["message"], "request finished");
  EXPECT_EQ(found[1]["request_id"], "r{}\"1");
  EXPECT_EQ(found[1]["n"], "3");
  EXPECT_FALSE(found[1].contains("trace_id"));
}

TEST(LogTest, TextIsOneLineAnEvent) {
  const std::string lines = Logged("text", [] {
    LogEvent("request finished", {{"request_id", "r{}1"}, {"trace_id", ""}, {"why", "a\nb"}});
  });
  EXPECT_THAT(lines, HasSubstr(" test request finished request_id=r{}1 why=\"a\\nb\"\n"));
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 1);
}

}  // namespace
}  // namespace conclave
