// The whole link between two ranks of one process: what tests/rpc/nccl_link_test.cc does with a
// stand-in, and how long a round trip takes.
#include <algorithm>
#include <iostream>
#include <thread>

#include "absl/synchronization/notification.h"
#include "kernels/cuda/nccl.h"
#include "rpc/nccl_link.h"
#include "tests/kernels/nccl/nccl_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

absl::Status Take(FrameLink& link, Doorbell& bell, std::vector<uint8_t>* tensor) {
  const absl::Time give_up = absl::Now() + kPatience;
  while (absl::Now() < give_up) {
    const uint32_t rings = bell.rings();
    const absl::StatusOr<bool> polled =
        link.Poll(1, [&](const std::string&, absl::Span<const uint8_t> bytes) {
          tensor->assign(bytes.begin(), bytes.end());
          return absl::OkStatus();
        });
    if (!polled.ok()) return polled.status();
    if (*polled) return absl::OkStatus();
    bell.Wait(rings, give_up);
  }
  return absl::DeadlineExceededError("the test's patience");
}

TEST(NcclGpuLinkTest, FramesGoRound) {
  if (cuda::DeviceCount() == 0) GTEST_SKIP() << "NOT TESTED, no GPU";
  if (const auto nccl = cuda::NcclLibrary::Get(); !nccl.ok()) {
    GTEST_SKIP() << "NOT TESTED, no NCCL: " << nccl.status().message();
  }
  std::string why;
  const auto [worker_device, shard_device] = cuda::DevicesOfTwoRanks(&why);
  if (worker_device < 0) GTEST_SKIP() << "NOT TESTED: " << why;
  ASSERT_OK_AND_ASSIGN(auto worker_api, cuda::OpenNccl(worker_device));
  ASSERT_OK_AND_ASSIGN(auto shard_api, cuda::OpenNccl(shard_device));
  Doorbell worker_bell, shard_bell;
  NcclTransport worker_transport(std::move(worker_api)), shard_transport(std::move(shard_api));
  const NcclPeers peers{"fingerprint", 1, 4096};
  ASSERT_OK_AND_ASSIGN(NcclOffering offering,
                       NcclOffering::Make(&worker_transport, peers, /*fp8_dispatches=*/false));
  v1::NcclAnswer answer;
  ASSERT_OK_AND_ASSIGN(const auto shard,
                       AcceptNccl(offering.offer(), &shard_transport, peers, &shard_bell, &answer));
  absl::Notification ready;
  absl::Status ready_status;
  ASSERT_OK_AND_ASSIGN(const auto worker,
                       offering.Open(answer, &worker_bell, [&](const absl::Status& status) {
                         ready_status = status;
                         ready.Notify();
                       }));
  ready.WaitForNotification();
  ASSERT_OK(ready_status);
  constexpr int kRounds = 200;
  for (const size_t bytes : {size_t{8192}, size_t{65536}, size_t{1} << 20, size_t{4} << 20}) {
    const std::vector<uint8_t> tensor(bytes, static_cast<uint8_t>(bytes >> 12));
    std::thread echo([&] {
      std::vector<uint8_t> taken;
      for (int i = 0; i < kRounds; ++i) {
        ASSERT_OK(Take(*shard, shard_bell, &taken));
        ASSERT_OK(shard->Send(v1::ExpertCombine(), {taken}));
      }
    });
    std::vector<absl::Duration> times;
    for (int i = 0; i < kRounds; ++i) {
      const absl::Time start = absl::Now();
      ASSERT_OK(worker->Send(v1::ExpertDispatch(), {tensor}));
      std::vector<uint8_t> back;
      ASSERT_OK(Take(*worker, worker_bell, &back));
      times.push_back(absl::Now() - start);
      EXPECT_TRUE(back == tensor);
    }
    echo.join();
    std::sort(times.begin(), times.end());
    std::cout << bytes << " bytes there and back: median "
              << absl::ToDoubleMicroseconds(times[kRounds / 2]) << " us" << std::endl;
  }
}

}  // namespace
}  // namespace conclave
