#include "rpc/buffer_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

namespace conclave {
namespace {

TEST(BufferPool, ReusesBuffersOfAboutTheSameSize) {
  BufferPool pool(1 << 20);
  std::shared_ptr<uint8_t> first = pool.Take(5000);
  const uint8_t* address = first.get();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(address) % 64, 0u);
  EXPECT_EQ(pool.idle_bytes(), 0u);
  first.reset();
  EXPECT_EQ(pool.idle_bytes(), 8192u);
  const std::shared_ptr<uint8_t> again = pool.Take(8192);
  EXPECT_EQ(again.get(), address);
  EXPECT_NE(pool.Take(8192).get(), address);  // in use
}

TEST(BufferPool, KeepsNoMoreThanItsBound) {
  BufferPool pool(10'000);
  std::shared_ptr<uint8_t> a = pool.Take(8192), b = pool.Take(8192);
  a.reset();
  b.reset();
  EXPECT_EQ(pool.idle_bytes(), 8192u);
}

TEST(BufferPool, BuffersOutliveIt) {
  std::shared_ptr<uint8_t> buffer;
  {
    BufferPool pool(1 << 20);
    buffer = pool.Take(100);
  }
  std::memset(buffer.get(), 1, 100);
}

TEST(BufferPool, ServesSeveralThreads) {
  BufferPool pool(1 << 20);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 500; ++i) {
        const std::shared_ptr<uint8_t> buffer = pool.Take(4096 << (i % 3));
        std::memset(buffer.get(), t, 4096);
        for (int b = 0; b < 4096; b += 512) ASSERT_EQ(buffer.get()[b], t);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(pool.idle_bytes(), size_t{1} << 20);
}

}  // namespace
}  // namespace conclave
