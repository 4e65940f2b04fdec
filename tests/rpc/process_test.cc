#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include "rpc/announce.h"
#include "rpc/shutdown_signals.h"

namespace conclave {
namespace {

TEST(Announce, PrintsOneLineOfJsonEach) {
  testing::internal::CaptureStdout();
  PrintListening({{"grpc", "127.0.0.1:43211"}, {"metrics", "127.0.0.1:40001"}});
  PrintReady();
  EXPECT_EQ(
      testing::internal::GetCapturedStdout(),
      "{\"event\":\"listening\",\"grpc\":\"127.0.0.1:43211\",\"metrics\":\"127.0.0.1:40001\"}\n"
      "{\"event\":\"ready\"}\n");
}

TEST(Announce, SurvivesBytesThatAreNoText) {
  testing::internal::CaptureStdout();
  PrintListening({{"grpc", "unix:/tmp/\xff"}});
  EXPECT_NE(testing::internal::GetCapturedStdout().find("listening"), std::string::npos);
}

// Each in a process of its own: threads of other tests do not block the signals.
class ShutdownSignalsDeathTest : public testing::Test {
 protected:
  void SetUp() override { testing::FLAGS_gtest_death_test_style = "threadsafe"; }
};

void TakeOneSignal(int number) {
  ShutdownSignals signals;
  if (signals.Requested()) _exit(2);
  kill(getpid(), number);
  signals.Wait();
  _exit(signals.Requested() ? 0 : 3);
}

TEST_F(ShutdownSignalsDeathTest, TermAndIntEndTheWait) {
  EXPECT_EXIT(TakeOneSignal(SIGTERM), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(TakeOneSignal(SIGINT), testing::ExitedWithCode(0), "");
}

TEST_F(ShutdownSignalsDeathTest, ASecondSignalEndsTheProcess) {
  const auto twice = [] {
    ShutdownSignals signals;
    kill(getpid(), SIGTERM);
    signals.Wait();
    kill(getpid(), SIGINT);
    pause();  // a drain that never ends
    _exit(4);
  };
  EXPECT_EXIT(twice(), testing::ExitedWithCode(1), "");
}

TEST_F(ShutdownSignalsDeathTest, AFailureEndsTheWaitAndASignalAfterItTheProcess) {
  const auto fail = [] {
    ShutdownSignals signals;
    if (!signals.failure().ok()) _exit(2);
    signals.Fail(absl::InternalError("first"));
    signals.Fail(absl::InternalError("second"));
    signals.Wait();
    if (signals.failure().message() != "first") _exit(3);
    kill(getpid(), SIGTERM);
    pause();
    _exit(4);
  };
  EXPECT_EXIT(fail(), testing::ExitedWithCode(1), "");
}

TEST_F(ShutdownSignalsDeathTest, EndsWithoutASignal) {
  const auto none = [] {
    { ShutdownSignals signals; }
    _exit(0);
  };
  EXPECT_EXIT(none(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace conclave
