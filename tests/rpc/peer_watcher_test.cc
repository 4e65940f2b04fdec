#include "rpc/peer_watcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "common/limits.h"
#include "common/log.h"
#include "tests/support/fake_resolver.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Addresses = std::vector<std::string>;

class PeerWatcherTest : public testing::Test {
 protected:
  void Watch(std::vector<std::string> targets) {
    watcher_ = std::make_unique<PeerWatcher>(
        PeerWatcher::Options{std::move(targets), resolver_, refresh_, absl::Milliseconds(1)});
    watcher_->Start([this](const PeerWatcher::Found& found) {
      absl::MutexLock lock(&mutex_);
      ++looks_;
      found_ = found;
    });
  }
  // The addresses, once they are `wanted`; what they are after a long time if they never are.
  Addresses Await(const Addresses& wanted) {
    absl::MutexLock lock(&mutex_);
    const auto is_there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return List() == wanted; };
    mutex_.AwaitWithTimeout(absl::Condition(&is_there), absl::Seconds(60));
    return List();
  }
  // Until that many more answers have been looked at.
  void AwaitLooks(int more) {
    absl::MutexLock lock(&mutex_);
    const int wanted = looks_ + more;
    const auto is_there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return looks_ >= wanted; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&is_there), absl::Seconds(60)));
  }
  Addresses List() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Addresses addresses;
    for (const Peer& peer : found_.peers) addresses.push_back(peer.address);
    return addresses;
  }

  absl::Duration refresh_ = absl::Milliseconds(2);
  std::shared_ptr<FakeResolver> resolver_ = std::make_shared<FakeResolver>();
  absl::Mutex mutex_;
  int looks_ ABSL_GUARDED_BY(mutex_) = 0;
  PeerWatcher::Found found_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<PeerWatcher> watcher_;
};

TEST_F(PeerWatcherTest, WhatIsNoNameIsThereAtOnceAndStays) {
  Watch({"host:1", "unix:/tmp/a"});
  absl::MutexLock lock(&mutex_);
  EXPECT_THAT(List(), ElementsAre("host:1", "unix:/tmp/a"));
  EXPECT_EQ(looks_, 1);
  EXPECT_EQ(resolver_->asked(), 0);
}

TEST_F(PeerWatcherTest, ANameIsAllItsAddressesAsTheyComeAndGo) {
  resolver_->Set("dns:///w:1", Addresses{"a:1"});
  Watch({"dns:///w:1", "host:1"});
  EXPECT_THAT(Await({"a:1", "host:1"}), ElementsAre("a:1", "host:1"));
  resolver_->Set("dns:///w:1", Addresses{"a:1", "b:1", "c:1"});
  EXPECT_THAT(Await({"a:1", "b:1", "c:1", "host:1"}), ElementsAre("a:1", "b:1", "c:1", "host:1"));
  resolver_->Set("dns:///w:1", Addresses{"b:1"});
  EXPECT_THAT(Await({"b:1", "host:1"}), ElementsAre("b:1", "host:1"));
}

TEST_F(PeerWatcherTest, AnAddressBehindTwoTargetsIsOnePeer) {
  resolver_->Set("dns:///w:1", Addresses{"a:1", "b:1"});
  Watch({"a:1", "dns:///w:1"});
  EXPECT_THAT(Await({"a:1", "b:1"}), ElementsAre("a:1", "b:1"));
  absl::MutexLock lock(&mutex_);
  EXPECT_EQ(found_.peers[0].target_idx, 0u);
  EXPECT_EQ(found_.peers[1].target_idx, 1u);
}

TEST_F(PeerWatcherTest, NoAnswerOrAnEmptyOneLeavesThePeersAlone) {
  resolver_->Set("dns:///w:1", Addresses{"a:1"});
  Watch({"dns:///w:1"});
  EXPECT_THAT(Await({"a:1"}), ElementsAre("a:1"));
  for (const absl::StatusOr<Addresses>& answer :
       {absl::StatusOr<Addresses>(absl::UnavailableError("server down")),
        absl::StatusOr<Addresses>(absl::NotFoundError("no such name")),
        absl::StatusOr<Addresses>(Addresses{})}) {
    resolver_->Set("dns:///w:1", answer);
    AwaitLooks(2);  // the second began after the answer was set
    absl::MutexLock lock(&mutex_);
    EXPECT_THAT(List(), ElementsAre("a:1"));
    EXPECT_TRUE(found_.errors[0].ok());
  }
}

TEST_F(PeerWatcherTest, ANameThatIsNotThereYetIsAskedForUntilItIs) {
  refresh_ = absl::Hours(1);
  Watch({"dns:///w:1"});
  AwaitLooks(3);
  {
    absl::MutexLock lock(&mutex_);
    EXPECT_EQ(found_.errors[0], absl::NotFoundError("no dns:///w:1"));
  }
  resolver_->Set("dns:///w:1", Addresses{"a:1"});
  EXPECT_THAT(Await({"a:1"}), ElementsAre("a:1"));
}

TEST_F(PeerWatcherTest, ALossAsksAgainAtOnce) {
  refresh_ = absl::Hours(1);
  resolver_->Set("dns:///w:1", Addresses{"a:1"});
  Watch({"dns:///w:1"});
  EXPECT_THAT(Await({"a:1"}), ElementsAre("a:1"));
  resolver_->Set("dns:///w:1", Addresses{"b:1"});
  watcher_->LookAgain();
  EXPECT_THAT(Await({"b:1"}), ElementsAre("b:1"));
}

TEST_F(PeerWatcherTest, AddressesPastTheBoundAreLeftOutAloudOnce) {
  Addresses all;
  for (size_t i = 0; i < limits::kMaxPeersOfName + 44; ++i) {
    all.push_back(absl::StrFormat("host-%03d:1", i));
  }
  resolver_->Set("dns:///w:1", all);
  const Addresses used(all.begin(), all.begin() + limits::kMaxPeersOfName);
  testing::internal::CaptureStderr();
  ASSERT_OK(InitLog("test", "info"));
  Watch({"dns:///w:1"});
  EXPECT_EQ(Await(used), used);
  AwaitLooks(3);
  watcher_->Stop();
  const std::string said = testing::internal::GetCapturedStderr();
  const std::string warning = "dns:///w:1 has 300 addresses, and the first 256 are used";
  EXPECT_THAT(said, HasSubstr(warning));
  EXPECT_EQ(said.find(warning), said.rfind(warning)) << said;
}

}  // namespace
}  // namespace conclave
