#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "tests/kernels/kernel_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave::cuda {

// A number that changes from run to run, unless --gtest_random_seed=N fixes it.
inline int RunSeed() {
  static const int seed = [] {
    const int given = GTEST_FLAG_GET(random_seed);
    return given != 0 ? given : static_cast<int>(std::random_device{}() % 99999) + 1;
  }();
  return seed;
}

// A seed for fresh inputs. A failed test prints how to bring them back.
inline uint64_t FreshSeed(uint64_t salt) {
  return static_cast<uint64_t>(RunSeed()) * 1000003 + salt;
}

// Arrays on the device that live as long as the test, and a stream.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (DeviceCount() == 0) GTEST_SKIP() << "SKIPPED: no GPU here, no CUDA kernel was run";
    absl::StatusOr<Stream> stream = Stream::Create();
    ASSERT_OK(stream);
    stream_.emplace(*std::move(stream));
  }

  void TearDown() override {
    if (HasFailure()) std::cerr << "inputs: --gtest_random_seed=" << RunSeed() << std::endl;
  }

  const Stream& stream() const { return *stream_; }

  // Not initialised: the emulator fills it with NaN, compute-sanitizer's initcheck watches it.
  // Of no values: still an address, as that of an empty array.
  template <typename T>
  T* Empty(size_t count) {
    absl::StatusOr<DeviceMemory> memory =
        DeviceMemory::Allocate(std::max<size_t>(count, 1) * sizeof(T));
    EXPECT_OK(memory);
    memory_.push_back(*std::move(memory));
    return memory_.back().As<T>();
  }

  template <typename T>
  T* Upload(const std::vector<T>& values) {
    T* const device = Empty<T>(values.size());
    EXPECT_OK(CopyToDevice(device, values.data(), values.size() * sizeof(T), stream()));
    EXPECT_OK(stream().Synchronize());
    return device;
  }

  // Waits for everything enqueued.
  template <typename T>
  std::vector<T> Download(const T* device, size_t count) {
    std::vector<T> values(count);
    EXPECT_OK(CopyToHost(values.data(), device, count * sizeof(T), stream()));
    EXPECT_OK(stream().Synchronize());
    return values;
  }

 private:
  std::optional<Stream> stream_;
  std::vector<DeviceMemory> memory_;
};

}  // namespace conclave::cuda
