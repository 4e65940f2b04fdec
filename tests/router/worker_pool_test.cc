#include "router/worker_pool.h"

#include <memory>
#include <numeric>

#include "absl/strings/match.h"
#include "absl/synchronization/notification.h"
#include "tests/router/test_router.h"
#include "tests/support/fake_resolver.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;

class WorkerPoolTest : public testing::Test {
 protected:
  void MakePool(const std::vector<FakeWorker*>& workers) {
    WorkerPoolOptions options = TestRouterOptions().pool;
    for (FakeWorker* worker : workers) options.targets.push_back(worker->target());
    pool_ = std::make_unique<WorkerPool>(options, TestModel().Info(), &router_metrics_);
  }
  bool WaitForUp(int worker, bool up = true) {
    return Eventually([&] { return pool_->Snapshot()[worker].up() == up; });
  }
  // Waits for an error of the worker that holds `words`.
  bool WaitForError(int worker, const std::string& words) {
    return Eventually([&] { return absl::StrContains(pool_->Snapshot()[worker].error(), words); });
  }

  std::string registry_text() const { return metrics_.Text(); }

  Metrics metrics_;
  RouterMetrics router_metrics_{&metrics_};
  FakeWorker first_, second_;
  std::unique_ptr<WorkerPool> pool_;
};

TEST_F(WorkerPoolTest, HandsOutTheLeastLoadedWorker) {
  first_.SetDescription([](v1::WorkerDescription& d) { d.set_running(3); });
  MakePool({&first_, &second_});
  ASSERT_TRUE(WaitForUp(0) && WaitForUp(1));
  std::vector<std::unique_ptr<WorkerLease>> leases;
  for (int i = 0; i < 3; ++i) {
    leases.push_back(pool_->Acquire({}));
    EXPECT_EQ(leases.back()->worker(), 1) << i;
  }
  // Both have three now: they take turns.
  leases.push_back(pool_->Acquire({}));
  leases.push_back(pool_->Acquire({}));
  EXPECT_NE(leases[3]->worker(), leases[4]->worker());
  EXPECT_EQ(pool_->Snapshot()[1].inflight(), 4u);
  leases.clear();
  EXPECT_EQ(pool_->Snapshot()[1].inflight(), 0u);
}

PrefixKeys Prompt(size_t length, uint32_t first = 0) {
  std::vector<uint32_t> ids(length);
  std::iota(ids.begin(), ids.end(), first);
  return PrefixMap::KeysOf(ids);
}

TEST_F(WorkerPoolTest, AConversationGoesWhereItsBlocksAre) {
  MakePool({&first_, &second_});
  ASSERT_TRUE(WaitForUp(0) && WaitForUp(1));
  const int home = pool_->Acquire({"", {}, Prompt(1000)})->worker();
  const int other = pool_->Acquire({"", {}, Prompt(1000, 5000)})->worker();
  EXPECT_NE(home, other);
  // However turns would have it, each goes on where it was.
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(pool_->Acquire({"", {}, Prompt(1100)})->worker(), home);
    EXPECT_EQ(pool_->Acquire({"", {}, Prompt(1200)})->worker(), home);
    EXPECT_EQ(pool_->Acquire({"", {}, Prompt(1100, 5000)})->worker(), other);
  }
  // One that refused it is not asked, whatever it has.
  EXPECT_EQ(pool_->Acquire({"", {home}, Prompt(1000)})->worker(), other);
  EXPECT_THAT(registry_text(), HasSubstr("prefix_routes_total{route=\"cached\"} 9"));
  EXPECT_THAT(registry_text(), HasSubstr("prefix_routes_total{route=\"balanced\"} 1"));
  EXPECT_THAT(registry_text(), HasSubstr("prefix_routes_total{route=\"unknown\"} 2"));
}

TEST_F(WorkerPoolTest, CachedTokensAreWeighedAgainstLoad) {
  MakePool({&first_, &second_});
  ASSERT_TRUE(WaitForUp(0) && WaitForUp(1));
  const int home = pool_->Acquire({"", {}, Prompt(1000)})->worker();
  // 960 tokens are known there: at 256 for a request, worth three requests more and not four.
  std::vector<std::unique_ptr<WorkerLease>> leases;
  for (int i = 0; i < 4; ++i) {
    leases.push_back(pool_->Acquire({"", {}, Prompt(1000)}));
    EXPECT_EQ(leases.back()->worker(), home) << i;
  }
  leases.push_back(pool_->Acquire({"", {}, Prompt(1000)}));
  EXPECT_NE(leases.back()->worker(), home);
  // Now both have it.
  leases.push_back(pool_->Acquire({"", {}, Prompt(1000)}));
  EXPECT_NE(leases.back()->worker(), home);
}

TEST_F(WorkerPoolTest, ARequestThatIsOverIsNoLoad) {
  MakePool({&first_, &second_});
  ASSERT_TRUE(WaitForUp(0) && WaitForUp(1));
  const auto lease = pool_->Acquire({"", {}, Prompt(1000)});
  const int home = lease->worker();
  EXPECT_EQ(pool_->AcquireIdle(home, {}), nullptr);
  lease->ReportSuccess();
  lease->ReportSuccess();
  EXPECT_EQ(pool_->Snapshot()[home].inflight(), 0u);
  const auto idle = pool_->AcquireIdle(home, {});
  ASSERT_NE(idle, nullptr);
  EXPECT_EQ(pool_->Snapshot()[home].inflight(), 0u) << "background work is none either";
}

TEST_F(WorkerPoolTest, AWorkerThatWasLostHasNoBlocks) {
  MakePool({&first_, &second_});
  ASSERT_TRUE(WaitForUp(0) && WaitForUp(1));
  const auto busy = pool_->Acquire({"", {1}});
  auto lease = pool_->Acquire({"", {1}, Prompt(1000)});
  EXPECT_EQ(lease->worker(), 0);
  lease->ReportFailure(absl::UnavailableError("broke"));
  lease.reset();
  ASSERT_TRUE(WaitForUp(0));
  EXPECT_EQ(pool_->Acquire({"", {}, Prompt(1000)})->worker(), 1) << "the idle one";
}

TEST_F(WorkerPoolTest, AWorkerWithoutAPrefixCacheIsNoHome) {
  first_.SetDescription([](v1::WorkerDescription& d) { d.set_prefix_cache(false); });
  MakePool({&first_, &second_});
  ASSERT_TRUE(WaitForUp(0) && WaitForUp(1));
  const auto lease = pool_->Acquire({"", {1}, Prompt(1000)});
  EXPECT_EQ(pool_->Acquire({"", {}, Prompt(1000)})->worker(), 1);
}

TEST_F(WorkerPoolTest, SkipsWorkersThatCannotBeUsed) {
  second_.SetDescription([](v1::WorkerDescription& d) { d.mutable_model()->set_hidden_size(128); });
  MakePool({&first_, &second_});
  ASSERT_TRUE(WaitForUp(0));
  ASSERT_TRUE(WaitForError(1, "hidden_size is 128, want 64"));
  EXPECT_EQ(pool_->Acquire({"", {0}}), nullptr);
  EXPECT_EQ(pool_->Acquire({"other weights", {}}), nullptr);
  EXPECT_NE(pool_->Acquire({"f00d", {}}), nullptr);
  first_.SetDescription([](v1::WorkerDescription& d) {
    d.set_ready(false);
    d.set_reason("no experts");
  });
  ASSERT_TRUE(WaitForError(0, "no experts"));
  EXPECT_EQ(pool_->Acquire({}), nullptr);
  EXPECT_FALSE(pool_->AnyReady());
}

TEST_F(WorkerPoolTest, WorkersOfOneCheckpointStayTogether) {
  second_.SetDescription([](v1::WorkerDescription& d) { d.set_ready(false); });
  MakePool({&first_, &second_});
  ASSERT_TRUE(WaitForUp(0));
  second_.SetDescription([](v1::WorkerDescription& d) {
    d.set_ready(true);
    d.mutable_model()->set_fingerprint("beef");
  });
  ASSERT_TRUE(WaitForError(1, "fingerprint is beef, want f00d"));
  EXPECT_EQ(router_metrics_.workers().Value(), 2);
  EXPECT_EQ(router_metrics_.workers_up().Value(), 1);
  EXPECT_EQ(router_metrics_.workers_with_other_model().Value(), 1);
  EXPECT_EQ(pool_->fingerprint(), "f00d");
  // Once nobody serves the old weights, the new ones are what is served.
  first_.Stop();
  ASSERT_TRUE(WaitForUp(1));
  EXPECT_EQ(pool_->fingerprint(), "beef");
  EXPECT_EQ(router_metrics_.workers_with_other_model().Value(), 0);
}

TEST_F(WorkerPoolTest, NoticesALossAndAReturn) {
  first_.SetDescription([](v1::WorkerDescription& d) { d.add_shards()->set_up(true); });
  MakePool({&first_});
  ASSERT_TRUE(WaitForUp(0));
  EXPECT_EQ(pool_->Snapshot()[0].description().shards_size(), 1);
  first_.Stop();
  ASSERT_TRUE(WaitForUp(0, false));
  EXPECT_NE(pool_->Snapshot()[0].error(), "");
  // Nobody knows whether its shards are still up.
  EXPECT_FALSE(pool_->Snapshot()[0].description().ready());
  EXPECT_EQ(pool_->Snapshot()[0].description().shards_size(), 0);
  first_.Start();
  ASSERT_TRUE(WaitForUp(0));
}

TEST_F(WorkerPoolTest, AFailureMakesThePoolAskAtOnce) {
  WorkerPoolOptions options = TestRouterOptions().pool;
  options.targets = {first_.target()};
  options.poll_interval = absl::Hours(1);
  pool_ = std::make_unique<WorkerPool>(options, TestModel().Info(), &router_metrics_);
  ASSERT_TRUE(WaitForUp(0));
  first_.SetDescription([](v1::WorkerDescription& d) {
    d.set_ready(false);
    d.set_reason("drains");
  });
  const auto lease = pool_->Acquire({});
  ASSERT_NE(lease, nullptr);  // nobody asked since
  lease->ReportFailure(absl::UnavailableError("broke"));
  ASSERT_TRUE(WaitForError(0, "drains"));
  EXPECT_EQ(pool_->Acquire({}), nullptr);
}

TEST_F(WorkerPoolTest, ManyStreamsOfOneCrashAreOneFailure) {
  WorkerPoolOptions options = TestRouterOptions().pool;
  options.targets = {first_.target()};
  options.min_rest = options.max_rest = absl::Hours(1);
  pool_ = std::make_unique<WorkerPool>(options, TestModel().Info(), &router_metrics_);
  ASSERT_TRUE(WaitForUp(0));
  std::vector<std::unique_ptr<WorkerLease>> leases;
  for (int i = 0; i < 10; ++i) leases.push_back(pool_->Acquire({}));
  for (const auto& lease : leases) lease->ReportFailure(absl::UnavailableError("broke"));
  ASSERT_TRUE(WaitForUp(0));  // else it would rest for an hour
}

TEST_F(WorkerPoolTest, FailuresInARowMakeAWorkerRest) {
  WorkerPoolOptions options = TestRouterOptions().pool;
  options.targets = {first_.target()};
  options.min_rest = options.max_rest = absl::Hours(1);
  pool_ = std::make_unique<WorkerPool>(options, TestModel().Info(), &router_metrics_);
  for (int i = 0; i < options.failures_to_open; ++i) {
    ASSERT_TRUE(WaitForUp(0)) << i;
    pool_->Acquire({})->ReportFailure(absl::UnavailableError("broke"));
  }
  ASSERT_TRUE(WaitForError(0, "rests after 3"));
  EXPECT_EQ(pool_->Acquire({}), nullptr);
}

TEST_F(WorkerPoolTest, SuccessForgivesFailures) {
  WorkerPoolOptions options = TestRouterOptions().pool;
  options.targets = {first_.target()};
  options.min_rest = options.max_rest = absl::Hours(1);
  pool_ = std::make_unique<WorkerPool>(options, TestModel().Info(), &router_metrics_);
  for (int i = 0; i < 2 * options.failures_to_open; ++i) {
    ASSERT_TRUE(WaitForUp(0)) << i;
    pool_->Acquire({})->ReportSuccess();
    pool_->Acquire({})->ReportFailure(absl::UnavailableError("broke"));
  }
  ASSERT_TRUE(WaitForUp(0));
}

TEST_F(WorkerPoolTest, WaitEndsWhenAWorkerComesUp) {
  first_.SetDescription([](v1::WorkerDescription& d) { d.set_ready(false); });
  MakePool({&first_});
  absl::Notification woken, ready;
  pool_->OnFirstReady([&] { ready.Notify(); });
  pool_->Wait({}, absl::InfiniteFuture(), [&] { woken.Notify(); });
  EXPECT_FALSE(woken.HasBeenNotified());
  first_.SetDescription([](v1::WorkerDescription& d) { d.set_ready(true); });
  EXPECT_TRUE(woken.WaitForNotificationWithTimeout(absl::Seconds(20)));
  EXPECT_TRUE(ready.WaitForNotificationWithTimeout(absl::Seconds(20)));
  // One that is up already is not missed.
  absl::Notification at_once;
  pool_->Wait({}, absl::InfiniteFuture(), [&] { at_once.Notify(); });
  EXPECT_TRUE(at_once.WaitForNotificationWithTimeout(absl::Seconds(20)));
}

TEST_F(WorkerPoolTest, WaitEndsAtItsDeadlineOrIsCancelled) {
  first_.SetDescription([](v1::WorkerDescription& d) { d.set_ready(false); });
  MakePool({&first_});
  absl::Notification late, cancelled;
  const auto id =
      pool_->Wait({}, absl::Now() + absl::Milliseconds(500), [&] { cancelled.Notify(); });
  pool_->CancelWait(id);
  pool_->Wait({}, absl::Now() + absl::Milliseconds(501), [&] { late.Notify(); });
  EXPECT_TRUE(late.WaitForNotificationWithTimeout(absl::Seconds(20)));
  EXPECT_FALSE(cancelled.HasBeenNotified());
}

TEST_F(WorkerPoolTest, TheContextIsWhatEveryWorkerHolds) {
  first_.SetDescription([](v1::WorkerDescription& d) { d.set_max_context(1000); });
  second_.SetDescription([](v1::WorkerDescription& d) { d.set_max_context(900); });
  MakePool({&first_, &second_});
  ASSERT_TRUE(WaitForUp(0) && WaitForUp(1));
  EXPECT_EQ(pool_->max_context(), 900);
}

class WorkersOfANameTest : public WorkerPoolTest {
 protected:
  static constexpr char kName[] = "dns:///workers:1";

  void MakePoolOfName() {
    WorkerPoolOptions options = TestRouterOptions().pool;
    options.targets = {kName};
    options.resolver = resolver_;
    options.name_refresh = absl::Milliseconds(5);
    pool_ = std::make_unique<WorkerPool>(options, TestModel().Info(), &router_metrics_);
  }
  void Point(const std::vector<FakeWorker*>& workers) {
    std::vector<std::string> addresses;
    for (FakeWorker* worker : workers) addresses.push_back(worker->target());
    resolver_->Set(kName, addresses);
  }
  // Targets of those that are up, once there are so many.
  std::vector<std::string> AwaitUp(size_t count) {
    std::vector<std::string> up;
    EXPECT_TRUE(Eventually([&] {
      up.clear();
      const auto statuses = pool_->Snapshot();
      for (const auto& status : statuses) {
        if (status.up()) up.push_back(status.target());
      }
      return up.size() == count && statuses.size() == count;
    })) << up.size();
    return up;
  }

  std::shared_ptr<FakeResolver> resolver_ = std::make_shared<FakeResolver>();
};

TEST_F(WorkersOfANameTest, ThoseThatJoinAreUsedAndThoseThatLeaveFinishWhatTheyHave) {
  Point({&first_});
  MakePoolOfName();
  EXPECT_THAT(AwaitUp(1), testing::ElementsAre(first_.target()));
  std::unique_ptr<WorkerLease> on_first = pool_->Acquire({});
  Point({&first_, &second_});
  AwaitUp(2);
  EXPECT_EQ(pool_->num_workers(), 2);
  const std::unique_ptr<WorkerLease> on_second = pool_->Acquire({});
  EXPECT_NE(on_second->worker(), on_first->worker());

  Point({&second_});
  EXPECT_TRUE(Eventually([&] { return pool_->num_workers() == 1; }));
  // Every new one goes to the other, while the call to the first still works.
  for (int i = 0; i < 4; ++i) EXPECT_EQ(pool_->Acquire({})->worker(), on_second->worker());
  grpc::ClientContext context;
  v1::WorkerDescription description;
  EXPECT_TRUE(on_first->stub().Describe(&context, v1::DescribeWorkerRequest(), &description).ok());
  EXPECT_EQ(pool_->Snapshot().size(), 2u);  // it is shown until it is done
  on_first->ReportSuccess();
  on_first.reset();
  EXPECT_THAT(AwaitUp(1), testing::ElementsAre(second_.target()));
  EXPECT_THAT(registry_text(), HasSubstr("conclave_router_workers 1\n"));
}

TEST_F(WorkersOfANameTest, OneThatComesBackIsUsedAgain) {
  Point({&first_, &second_});
  MakePoolOfName();
  AwaitUp(2);
  const std::unique_ptr<WorkerLease> one = pool_->Acquire({}), other = pool_->Acquire({});
  for (int round = 0; round < 3; ++round) {
    Point({&second_});
    EXPECT_TRUE(Eventually([&] { return pool_->num_workers() == 1; }));
    Point({&first_, &second_});
    AwaitUp(2);
  }
}

TEST_F(WorkersOfANameTest, ARequestWaitsForTheOneThatReplacesALostOne) {
  Point({&first_});
  MakePoolOfName();
  AwaitUp(1);
  std::unique_ptr<WorkerLease> lease = pool_->Acquire({});
  first_.Stop();
  Point({&second_});
  lease->ReportFailure(absl::UnavailableError("connection lost"));
  lease.reset();
  absl::Notification woken;
  pool_->Wait({}, absl::Now() + absl::Seconds(60), [&] { woken.Notify(); });
  EXPECT_TRUE(woken.WaitForNotificationWithTimeout(absl::Seconds(60)));
  lease = pool_->Acquire({});
  ASSERT_NE(lease, nullptr);
  EXPECT_THAT(AwaitUp(1), testing::ElementsAre(second_.target()));
}

TEST_F(WorkersOfANameTest, ANameWithoutAddressIsShownWithTheReason) {
  MakePoolOfName();
  EXPECT_TRUE(WaitForError(0, "no dns:///workers:1"));
  EXPECT_EQ(pool_->Snapshot()[0].target(), kName);
  EXPECT_EQ(pool_->num_workers(), 1);
  EXPECT_THAT(registry_text(), HasSubstr("conclave_router_workers 1\n"));
  Point({&first_});
  EXPECT_THAT(AwaitUp(1), testing::ElementsAre(first_.target()));
}

}  // namespace
}  // namespace conclave
