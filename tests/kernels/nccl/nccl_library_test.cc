// What can be said of NCCL with one rank: that it loads, and one that sends to itself.
#include "kernels/cuda/nccl_library.cuh"

#include <cuda_runtime.h>

#include <vector>

#include "kernels/cuda/nccl.h"
#include "tests/kernels/nccl/nccl_test_support.h"
#include "tests/support/status_matchers.h"

namespace conclave::cuda {
namespace {

TEST(NcclLibraryTest, IsFoundWithEveryFunctionAtRunTime) {
  SKIP_WITHOUT_NCCL();
  ASSERT_OK_AND_ASSIGN(const NcclLibrary* nccl, NcclLibrary::Get());
  EXPECT_GE(nccl->version(), NCCL_VERSION_CODE);
  EXPECT_OK(nccl->ToStatus(ncclSuccess, "x", nullptr));
  EXPECT_OK(nccl->ToStatus(ncclInProgress, "x", nullptr));
  EXPECT_THAT(nccl->ToStatus(ncclRemoteError, "ncclSend", nullptr),
              StatusIs(absl::StatusCode::kUnavailable, testing::HasSubstr("ncclSend: ")));
  std::cout << "NCCL " << nccl->version() << ", built with the header of " << NCCL_VERSION_CODE
            << std::endl;
}

TEST(NcclLibraryTest, WithoutAGpuItIsRefusedInOneLine) {
  if (DeviceCount() > 0) GTEST_SKIP() << "NOT TESTED, there is a GPU";
  EXPECT_THAT(OpenNccl(0).status(), StatusIs(absl::StatusCode::kFailedPrecondition));
}

// A rank that sends to itself, on two streams: what is left of the transport to try where NCCL does
// not allow two ranks on one GPU.
TEST(NcclLibraryTest, OneRankSendsToItselfOnTwoStreams) {
  SKIP_WITHOUT_GPU_AND_NCCL();
  ASSERT_OK(UseDevice(0));
  ASSERT_OK_AND_ASSIGN(const NcclLibrary* nccl, NcclLibrary::Get());
  ncclUniqueId id;
  ASSERT_EQ(nccl->GetUniqueId(&id), ncclSuccess);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  ASSERT_OK(nccl->ToStatus(nccl->CommInitRankConfig(&comm, 1, id, 0, &config),
                           "ncclCommInitRankConfig", nullptr));
  const absl::Time give_up = absl::Now() + absl::Seconds(60);
  const auto settle = [&]() -> absl::Status {
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress) {
      if (absl::Now() > give_up) return absl::DeadlineExceededError("NCCL is in progress");
      const ncclResult_t asked = nccl->CommGetAsyncError(comm, &state);
      if (asked != ncclSuccess) return nccl->ToStatus(asked, "ncclCommGetAsyncError", comm);
    }
    return nccl->ToStatus(state, "NCCL", comm);
  };
  ASSERT_OK(settle());
  constexpr size_t kBytes = (4 << 20) + 12;
  ASSERT_OK_AND_ASSIGN(const Stream sending, Stream::Create());
  ASSERT_OK_AND_ASSIGN(const Stream receiving, Stream::Create());
  ASSERT_OK_AND_ASSIGN(const DeviceMemory from, DeviceMemory::Allocate(kBytes));
  ASSERT_OK_AND_ASSIGN(const DeviceMemory to, DeviceMemory::Allocate(kBytes));
  for (uint8_t round = 1; round <= 5; ++round) {
    std::vector<uint8_t> sent(kBytes), received(kBytes);
    for (size_t i = 0; i < kBytes; ++i) sent[i] = static_cast<uint8_t>(i * round + i / 253);
    ASSERT_OK(FillBytes(to.As<void>(), 0, kBytes, receiving));
    ASSERT_OK(CopyToDevice(from.As<void>(), sent.data(), kBytes, sending));
    // NCCL matches a rank's transfers to itself within a group only.
    ASSERT_EQ(nccl->GroupStart(), ncclSuccess);
    ASSERT_OK(nccl->ToStatus(nccl->Send(from.As<void>(), kBytes, ncclUint8, 0, comm,
                                        static_cast<cudaStream_t>(sending.handle())),
                             "ncclSend", comm));
    ASSERT_OK(nccl->ToStatus(nccl->Recv(to.As<void>(), kBytes, ncclUint8, 0, comm,
                                        static_cast<cudaStream_t>(receiving.handle())),
                             "ncclRecv", comm));
    ASSERT_OK(nccl->ToStatus(nccl->GroupEnd(), "ncclGroupEnd", comm));
    ASSERT_OK(settle());
    ASSERT_OK(CopyToHost(received.data(), to.As<void>(), kBytes, receiving));
    ASSERT_OK(receiving.Synchronize());
    ASSERT_OK(sending.Synchronize());
    EXPECT_TRUE(received == sent);
  }
  EXPECT_EQ(nccl->CommAbort(comm), ncclSuccess);
}

}  // namespace
}  // namespace conclave::cuda
