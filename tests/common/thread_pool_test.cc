#include "common/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace conclave {
namespace {

TEST(ThreadPoolTest, CoversEveryIndexOnceForAnyCountAndGrain) {
  for (int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    for (int64_t count : {0, 1, 7, 64, 1000}) {
      for (int64_t grain : {1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> visits(count);
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
          ASSERT_LE(end - begin, grain);
          for (int64_t i = begin; i < end; ++i) visits[i].fetch_add(1);
        });
        for (const auto& visit : visits) ASSERT_EQ(visit.load(), 1);
      }
    }
  }
}

TEST(ThreadPoolTest, ManyShortLoopsFromTwoCallers) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  auto loops = [&] {
    for (int i = 0; i < 2000; ++i) {
      pool.ParallelFor(8, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
    }
  };
  std::thread other(loops);
  loops();
  other.join();
  EXPECT_EQ(sum.load(), 2 * 2000 * 8);
}

// More threads than cores and than ranges: most come too late for a loop, and some in the middle of
// one that follows.
TEST(ThreadPoolTest, ThreadsThatComeLateDoNoHarm) {
  ThreadPool pool(16);
  for (int64_t round = 0; round < 3000; ++round) {
    const int64_t count = 2 + round % 7;
    std::vector<int64_t> squares(count);  // goes out of scope with its loop
    pool.ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) squares[i] = i * i + round;
    });
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(squares[i], i * i + round);
  }
}

}  // namespace
}  // namespace conclave
