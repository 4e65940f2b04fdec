// Two ranks of one process through the interface that the transport uses.
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/cuda/nccl.h"
#include "tests/kernels/nccl/nccl_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave::cuda {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

absl::Status Await(const std::function<absl::StatusOr<bool>()>& wanted) {
  for (const absl::Time give_up = absl::Now() + kPatience; absl::Now() < give_up;) {
    const absl::StatusOr<bool> there = wanted();
    if (!there.ok()) return there.status();
    if (*there) return absl::OkStatus();
  }
  return absl::DeadlineExceededError("the test's patience");
}

#define SKIP_WITHOUT_TWO_RANKS(devices)                        \
  SKIP_WITHOUT_GPU_AND_NCCL();                                 \
  std::string why;                                             \
  const std::pair<int, int> devices = DevicesOfTwoRanks(&why); \
  if (devices.first < 0) GTEST_SKIP() << "NOT TESTED: " << why

uint8_t Byte(size_t size, size_t i) { return static_cast<uint8_t>(size * 31 + i * 7 + i / 253); }

TEST(NcclPairTest, BytesArriveInOrder) {
  SKIP_WITHOUT_TWO_RANKS(devices);
  ASSERT_OK_AND_ASSIGN(const auto sender, OpenNccl(devices.first));
  ASSERT_OK_AND_ASSIGN(const auto receiver, OpenNccl(devices.second));
  ASSERT_OK_AND_ASSIGN(const std::string id, sender->NewUniqueId());
  const std::vector<size_t> sizes = {1, 8, 4096, 4095, 1 << 20, 4 << 20, 2};
  const auto run = [&](NcclApi& api, int rank) {
    ASSERT_OK_AND_ASSIGN(const auto buffer, api.Allocate(4 << 20));
    ASSERT_OK_AND_ASSIGN(const auto comm, api.Join(id, rank));
    ASSERT_OK(Await([&] { return comm->Settled(); }));
    int64_t started = 0;
    for (const size_t size : sizes) {
      if (rank == 0) {
        for (size_t i = 0; i < size; ++i) buffer->host()[i] = Byte(size, i);
        ASSERT_OK(comm->Send(*buffer, size));
      } else {
        std::memset(buffer->host(), 0, size);
        ASSERT_OK(comm->Receive(*buffer, size));
      }
      ++started;
      ASSERT_OK(Await([&] { return comm->Settled(); }));
      ASSERT_OK(Await([&]() -> absl::StatusOr<bool> {
        absl::StatusOr<int64_t> done = comm->NumDone();
        if (!done.ok()) return done.status();
        return *done == started;
      }));
      if (rank == 0) continue;
      size_t wrong = 0;
      for (size_t i = 0; i < size; ++i) wrong += buffer->host()[i] != Byte(size, i);
      EXPECT_EQ(wrong, 0u) << size;
    }
  };
  std::thread other([&] { run(*receiver, 1); });
  run(*sender, 0);
  other.join();
}

// What a hang costs: a send that nobody receives is aborted, and its thread goes on.
TEST(NcclPairTest, ATransferThatWaitsForEverIsAborted) {
  SKIP_WITHOUT_TWO_RANKS(devices);
  ASSERT_OK_AND_ASSIGN(const auto a, OpenNccl(devices.first));
  ASSERT_OK_AND_ASSIGN(const auto b, OpenNccl(devices.second));
  ASSERT_OK_AND_ASSIGN(const std::string id, a->NewUniqueId());
  const auto run = [&](NcclApi& api, int rank) {
    ASSERT_OK_AND_ASSIGN(const auto buffer, api.Allocate(4 << 20));
    ASSERT_OK_AND_ASSIGN(auto comm, api.Join(id, rank));
    ASSERT_OK(Await([&] { return comm->Settled(); }));
    if (rank == 0) {
      ASSERT_OK(comm->Receive(*buffer, 4 << 20));
    }
    comm = nullptr;  // must return
  };
  std::thread other([&] { run(*b, 1); });
  run(*a, 0);
  other.join();
}

}  // namespace
}  // namespace conclave::cuda
