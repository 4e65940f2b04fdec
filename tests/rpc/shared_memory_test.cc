#include "rpc/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "rpc/doorbell.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {
namespace {

using testing::HasSubstr;

constexpr size_t kBytes = 8192;
constexpr absl::Duration kPatience = absl::Seconds(60);

TEST(SharedMemoryTest, BothSidesSeeTheSameBytes) {
  ASSERT_OK_AND_ASSIGN(SharedMemory made, SharedMemory::Create(kBytes));
  ASSERT_OK_AND_ASSIGN(SharedMemory opened, SharedMemory::Open(made.region(), kBytes));
  ASSERT_EQ(opened.size(), kBytes);
  ASSERT_NE(opened.data(), made.data());
  made.data()[kBytes - 1] = 42;
  EXPECT_EQ(opened.data()[kBytes - 1], 42);
  EXPECT_FALSE(made.IsConfirmed(0));
  const uint64_t confirmation = opened.Confirm();
  EXPECT_TRUE(made.IsConfirmed(confirmation));
  EXPECT_FALSE(made.IsConfirmed(confirmation + 2));
}

TEST(SharedMemoryTest, AnotherProcessOpensItAndItOutlivesItsMaker) {
  ASSERT_OK_AND_ASSIGN(SharedMemory made, SharedMemory::Create(kBytes));
  const v1::SharedMemoryRegion region = made.region();
  ASSERT_OK_AND_ASSIGN(SharedMemory opened, SharedMemory::Open(region, kBytes));
  made = SharedMemory();
  opened.data()[100] = 1;  // still there
  // With its file closed nobody else gets in.
  EXPECT_THAT(SharedMemory::Open(region, kBytes), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(SharedMemoryTest, NobodyCanShrinkIt) {
  ASSERT_OK_AND_ASSIGN(SharedMemory made, SharedMemory::Create(kBytes));
  EXPECT_NE(ftruncate(static_cast<int>(made.region().fd()), 0), 0);
}

TEST(SharedMemoryTest, WhatIsNotTheMemoryThatWasOfferedIsRefused) {
  ASSERT_OK_AND_ASSIGN(SharedMemory made, SharedMemory::Create(kBytes));
  const auto refused = [&](const char* why, const auto& spoil) {
    v1::SharedMemoryRegion region = made.region();
    spoil(region);
    EXPECT_THAT(SharedMemory::Open(region, kBytes),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(why)));
  };
  refused("first bytes", [](auto& region) { region.set_nonce(region.nonce() + 1); });
  refused("of that size", [](auto& region) { region.set_bytes(4096); });
  refused("want pages", [](auto& region) { region.set_bytes(2 * kBytes); });
  refused("want pages", [](auto& region) { region.set_bytes(kBytes - 1); });
  refused("want pages", [](auto& region) { region.set_bytes(0); });
  refused("No such file", [](auto& region) { region.set_pid(0xffffffff); });
  refused("No such file", [](auto& region) { region.set_fd(0xffffffff); });

  const TempDir dir;
  const std::string path = dir.File("file");
  const int file = open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  ASSERT_EQ(ftruncate(file, kBytes), 0);
  refused("sealed", [&](auto& region) { region.set_fd(static_cast<uint32_t>(file)); });
  close(file);
  const int unsealed = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(unsealed, kBytes), 0);
  refused("sealed", [&](auto& region) { region.set_fd(static_cast<uint32_t>(unsealed)); });
  close(unsealed);
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  refused("no memory", [&](auto& region) { region.set_fd(static_cast<uint32_t>(pipe_ends[0])); });
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

TEST(SharedMemoryTest, TheBootHasAName) { EXPECT_GE(BootId().size(), 32u); }

TEST(DoorbellTest, WakesASleeperAndMissesNoRing) {
  Doorbell bell;
  ASSERT_TRUE(bell.is_shared());
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Doorbell> peer, Doorbell::Open(bell.region()));
  constexpr uint32_t kRings = 2000;
  std::thread ringer([&] {
    for (uint32_t i = 0; i < kRings; ++i) peer->Ring();
  });
  const absl::Time give_up = absl::Now() + kPatience;
  for (uint32_t seen = bell.rings(); seen < kRings; seen = bell.rings()) {
    ASSERT_LT(absl::Now(), give_up);
    bell.Wait(seen, give_up);
  }
  ringer.join();
}

TEST(DoorbellTest, AnotherProcessWakesThisOne) {
  Doorbell bell;
  ASSERT_TRUE(bell.is_shared());
  const v1::SharedMemoryRegion region = bell.region();
  const pid_t child = fork();
  if (child == 0) {
    absl::StatusOr<std::unique_ptr<Doorbell>> peer = Doorbell::Open(region);
    if (peer.ok()) (*peer)->Ring();
    _exit(peer.ok() ? 0 : 1);
  }
  const absl::Time give_up = absl::Now() + kPatience;
  while (bell.rings() == 0 && absl::Now() < give_up) bell.Wait(0, give_up);
  EXPECT_EQ(bell.rings(), 1u);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(DoorbellTest, WaitsNoLongerThanToTheDeadline) {
  Doorbell bell;
  const absl::Time deadline = absl::Now() + absl::Milliseconds(20);
  while (absl::Now() < deadline) bell.Wait(bell.rings(), deadline);
  bell.Wait(bell.rings(), absl::InfinitePast());
  bell.Wait(bell.rings() + 1, absl::InfiniteFuture());  // has rung since: returns at once
}

}  // namespace
}  // namespace conclave
