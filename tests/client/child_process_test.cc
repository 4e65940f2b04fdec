#include "client/child_process.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string ReadAll(int fd) {
  std::string all;
  bool open = true;
  while (open) {
    pollfd readable = {fd, POLLIN, 0};
    if (poll(&readable, 1, 60'000) != 1) ADD_FAILURE() << "nothing to read within a minute";
    all += ReadAvailable(fd, &open);
  }
  return all;
}

int Reap(ChildProcess& child) {
  siginfo_t info;
  EXPECT_EQ(waitid(P_PID, static_cast<id_t>(child.pid()), &info, WEXITED | WNOWAIT), 0);
  const std::optional<int> status = child.TryReap();
  EXPECT_TRUE(status.has_value());
  return status.value_or(-1);
}

TEST(LineBufferTest, GivesWholeLinesAndCutsLongOnes) {
  LineBuffer buffer;
  EXPECT_THAT(buffer.Append("ab"), IsEmpty());
  EXPECT_THAT(buffer.Append("c\n\nde\nf"), ElementsAre("abc", "", "de"));
  EXPECT_EQ(buffer.TakeRest(), "f");
  EXPECT_EQ(buffer.TakeRest(), "");
  const std::string endless(LineBuffer::kMaxLineBytes + 1, 'x');
  EXPECT_THAT(buffer.Append(endless), ElementsAre(std::string(LineBuffer::kMaxLineBytes, 'x')));
  EXPECT_EQ(buffer.TakeRest(), "x");
}

TEST(ChildProcessTest, GivesBothStreamsAndTheExitCode) {
  ASSERT_OK_AND_ASSIGN(
      ChildProcess child,
      ChildProcess::Start({"/bin/sh", "-c", "echo $0; echo no >&2; exit 3", "hi"}));
  EXPECT_EQ(ReadAll(child.stdout_fd()), "hi\n");
  EXPECT_EQ(ReadAll(child.stderr_fd()), "no\n");
  EXPECT_EQ(DescribeExit(Reap(child)), "exited with code 3");
  EXPECT_EQ(DescribeExit(*child.TryReap()), "exited with code 3");
}

TEST(ChildProcessTest, SaysWhyAProgramCannotBeRun) {
  EXPECT_THAT(ChildProcess::Start({"/nowhere/at-all"}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nowhere/at-all")));
  EXPECT_THAT(ChildProcess::Start({"/etc/passwd"}), StatusIs(absl::StatusCode::kNotFound));
}

TEST(ChildProcessTest, StartsWithPlainSignalsWhateverIsBlockedHere) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  auto child = ChildProcess::Start({"/bin/sh", "-c", "echo up; exec sleep 600"});
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ASSERT_OK(child);
  pollfd readable = {child->stdout_fd(), POLLIN, 0};
  ASSERT_EQ(poll(&readable, 1, 60'000), 1);
  EXPECT_EQ(child->TryReap(), std::nullopt);
  child->Signal(SIGTERM);
  EXPECT_EQ(DescribeExit(Reap(*child)), "was killed by signal 15 (Terminated)");
}

TEST(ChildProcessTest, LeadsItsOwnGroupAndLeavesNobodyBehind) {
  pid_t grandchild = 0;
  {
    ASSERT_OK_AND_ASSIGN(ChildProcess child,
                         ChildProcess::Start({"/bin/sh", "-c", "sleep 600 & echo $! ; wait"}));
    EXPECT_EQ(getpgid(child.pid()), child.pid());
    pollfd readable = {child.stdout_fd(), POLLIN, 0};
    ASSERT_EQ(poll(&readable, 1, 60'000), 1);
    bool open;
    grandchild = std::stoi(ReadAvailable(child.stdout_fd(), &open));
    ASSERT_EQ(kill(grandchild, 0), 0);
  }
  // The group was signalled before the destructor returned. The grandchild is init's to reap now:
  // what is left of it, if anything, is a zombie.
  const std::string path = absl::StrCat("/proc/", grandchild, "/stat");
  for (int i = 0; i < 6000; ++i) {
    FILE* file = fopen(path.c_str(), "r");
    if (file == nullptr) return;
    char state = 0;
    const int fields = fscanf(file, "%*d %*s %c", &state);
    fclose(file);
    if (fields != 1 || state == 'Z') return;
    usleep(10'000);
  }
  ADD_FAILURE() << "process " << grandchild << " still runs after a minute";
}

TEST(ChildProcessTest, FindsItsOwnFolder) {
  ASSERT_OK_AND_ASSIGN(const std::string dir, ExecutableDir());
  EXPECT_EQ(access((dir + "/client_tests").c_str(), X_OK), 0) << dir;
}

}  // namespace
}  // namespace conclave
