#include "client/server_event.h"

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

TEST(ServerEventTest, ReadsBothEvents) {
  ASSERT_OK_AND_ASSIGN(
      const ServerEvent listening,
      ParseServerEvent(
          R"({"event":"listening","grpc":"127.0.0.1:43211","metrics":"[::1]:40001"})"));
  EXPECT_EQ(listening.kind, ServerEvent::Kind::kListening);
  EXPECT_EQ(listening.grpc, "127.0.0.1:43211");
  EXPECT_EQ(listening.grpc_port, 43211);
  EXPECT_EQ(listening.metrics, "[::1]:40001");
  EXPECT_EQ(listening.metrics_port, 40001);
  EXPECT_EQ(listening.http, "") << "it has no API there";
  ASSERT_OK_AND_ASSIGN(
      const ServerEvent router,
      ParseServerEvent(
          R"({"event":"listening","grpc":"h:1","http":"127.0.0.1:8000","metrics":"h:8000"})"));
  EXPECT_EQ(router.http, "127.0.0.1:8000");
  EXPECT_EQ(router.http_port, 8000);
  ASSERT_OK_AND_ASSIGN(const ServerEvent ready, ParseServerEvent(R"({"event":"ready"})"));
  EXPECT_EQ(ready.kind, ServerEvent::Kind::kReady);
}

TEST(ServerEventTest, RefusesEverythingElse) {
  for (const char* line :
       {"", "hello", "[]", "{", "{}", R"({"event":3})", R"({"event":"other"})",
        R"({"event":"listening"})", R"({"event":"listening","grpc":"127.0.0.1:1"})",
        R"({"event":"listening","grpc":"127.0.0.1","metrics":"127.0.0.1:1"})",
        R"({"event":"listening","grpc":"127.0.0.1:0","metrics":"127.0.0.1:1"})",
        R"({"event":"listening","grpc":"127.0.0.1:1","metrics":7})",
        R"({"event":"listening","grpc":"127.0.0.1:1","metrics":"127.0.0.1:1","http":"here"})"}) {
    EXPECT_THAT(ParseServerEvent(line), StatusIs(absl::StatusCode::kInvalidArgument)) << line;
  }
  EXPECT_THAT(ParseServerEvent("loading"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"loading\"")));
}

}  // namespace
}  // namespace conclave
