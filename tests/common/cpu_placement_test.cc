#include "common/cpu_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/id_list.h"
#include "common/thread_pool.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

// Runs `fn` on a thread of its own, whose placement ends with it.
template <typename Fn>
void OnAThread(Fn fn) {
  std::thread(fn).join();
}

TEST(CpuListTest, ReadsWhatTheKernelWrites) {
  ASSERT_OK_AND_ASSIGN(const std::vector<int> cpus, ParseCpuList("32-34,0-1,7"));
  EXPECT_THAT(cpus, ElementsAre(0, 1, 7, 32, 33, 34));
  EXPECT_EQ(FormatIdList(cpus), "0-1,7,32-34");
}

TEST(CpuListTest, RefusesWhatIsNoList) {
  for (const char* text : {"", "a", "1-", "-1", "0,,1", "0-1024", "1 2"}) {
    EXPECT_THAT(ParseCpuList(text), StatusIs(kInvalid, HasSubstr("want 0..1023"))) << text;
  }
  EXPECT_THAT(ParseCpuList("3-1"), StatusIs(kInvalid, HasSubstr("first <= last")));
  EXPECT_THAT(ParseCpuList("0-3,2"), StatusIs(kInvalid, HasSubstr("2 is there twice")));
}

TEST(NumaNodeTest, ReadsTheNodesCpus) {
  TempDir dir;
  const std::string nodes = dir.path() + "/sys/devices/system/node/";
  std::filesystem::create_directories(nodes + "node1");
  std::ofstream(nodes + "node1/cpulist") << "16-31,48-63\n";
  std::ofstream(nodes + "has_cpu") << "0-1\n";
  ASSERT_OK_AND_ASSIGN(const std::vector<int> cpus, CpusOfNumaNode(1, dir.path()));
  EXPECT_EQ(FormatIdList(cpus), "16-31,48-63");
  EXPECT_THAT(CpusOfNumaNode(7, dir.path()),
              StatusIs(kInvalid, HasSubstr("numa_node is 7, want one with CPUs, 0-1")));
  EXPECT_THAT(CpusOfNumaNode(0, dir.path() + "/none"),
              StatusIs(kInvalid, HasSubstr("the kernel shows no NUMA nodes")));
}

TEST(PlaceProcessTest, NothingChosenChangesNothing) {
  OnAThread([] {
    ASSERT_OK_AND_ASSIGN(const std::vector<int> allowed, AllowedCpus());
    ASSERT_FALSE(allowed.empty());
    EXPECT_EQ(*PlaceProcess({}), allowed);
    EXPECT_EQ(*AllowedCpus(), allowed);
  });
}

TEST(PlaceProcessTest, ThreadsStartedLaterStayOnTheChosenCpus) {
  OnAThread([] {
    ASSERT_OK_AND_ASSIGN(const std::vector<int> allowed, AllowedCpus());
    const int last = allowed.back();
    EXPECT_THAT(*PlaceProcess({.cpus = absl::StrCat(last)}), ElementsAre(last));
    OnAThread([&] {
      EXPECT_THAT(*AllowedCpus(), ElementsAre(last));
      EXPECT_EQ(sched_getcpu(), last);
    });
  });
}

TEST(PlaceProcessTest, RefusesCpusItMayNotUse) {
  OnAThread([] {
    ASSERT_OK_AND_ASSIGN(const std::vector<int> allowed, AllowedCpus());
    ASSERT_LT(allowed.back(), 1023) << "this test needs an id that is no CPU";
    EXPECT_THAT(
        PlaceProcess({.cpus = absl::StrCat(allowed.front(), ",1023")}),
        StatusIs(kInvalid, AllOf(HasSubstr("cpu is 1023"), HasSubstr(FormatIdList(allowed)))));
    EXPECT_EQ(*AllowedCpus(), allowed);
    EXPECT_THAT(PlaceProcess({.cpus = "", .numa_node = 4096}),
                StatusIs(kInvalid, HasSubstr("numa_node")));
  });
}

TEST(ThreadPoolTest, ThreadsArePinnedOneToACpu) {
  OnAThread([] {
    ASSERT_OK_AND_ASSIGN(const std::vector<int> allowed, AllowedCpus());
    ThreadPool pool(3, allowed);
    std::vector<std::vector<int>> seen(64);
    const auto this_thread = std::this_thread::get_id();
    std::atomic<int> others{0};
    pool.ParallelFor(64, 1, [&](int64_t begin, int64_t) {
      if (std::this_thread::get_id() == this_thread) {
        seen[begin] = {};
        // The caller waits until another thread had its turn, so that the test sees one.
        while (others.load() == 0) std::this_thread::yield();
        return;
      }
      ++others;
      seen[begin] = *AllowedCpus();
    });
    for (const std::vector<int>& cpus : seen) EXPECT_LE(cpus.size(), 1u);
    EXPECT_GT(others.load(), 0);
    EXPECT_EQ(*AllowedCpus(), allowed);  // the caller is not the pool's
  });
}

}  // namespace
}  // namespace conclave
