#include "kernels/cpu/dispatch.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace conclave::cpu {
namespace {

constexpr double kLong = 1e9;  // nanoseconds: worth waking threads for

TEST(DispatchTest, ShrinkingRangesCoverEverythingOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 2, 5, 16, 100, 1001}) {
      std::vector<std::atomic<int>> seen(count);
      ForShrinkingRanges({.pool = &pool}, count, kLong, [&](int64_t begin, int64_t end) {
        EXPECT_LT(begin, end);
        for (int64_t i = begin; i < end; ++i) ++seen[i];
      });
      for (int64_t i = 0; i < count; ++i) EXPECT_EQ(seen[i], 1) << threads << " " << count;
    }
  }
}

TEST(DispatchTest, ShrinkingRangesStartWithAShareAndEndWithOne) {
  ThreadPool pool(2);
  std::atomic<int64_t> longest{0}, shortest{1000};
  ForShrinkingRanges({.pool = &pool}, 100, kLong, [&](int64_t begin, int64_t end) {
    if (begin == 0) longest = end;
    if (end == 100) shortest = end - begin;
  });
  EXPECT_EQ(longest, 25);
  EXPECT_EQ(shortest, 1);
}

TEST(DispatchTest, ShortWorkStaysOnTheCallingThread) {
  ThreadPool pool(4);
  const std::thread::id caller = std::this_thread::get_id();
  int calls = 0;
  ForShrinkingRanges({.pool = &pool}, 100, /*nanoseconds=*/100, [&](int64_t begin, int64_t end) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_EQ(begin, 0);
    EXPECT_EQ(end, 100);
    ++calls;
  });
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace conclave::cpu
