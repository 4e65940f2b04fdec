#include "rpc/grpc_status.h"

#include "rpc/address.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

TEST(GrpcStatus, EveryCodeComesBack) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status sent = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(sent.error_code()), code);
    EXPECT_EQ(FromGrpcStatus(sent), status);
  }
}

TEST(GrpcStatus, UnknownCodeOfAPeerIsUnknown) {
  const grpc::Status odd(static_cast<grpc::StatusCode>(99), "odd");
  EXPECT_THAT(FromGrpcStatus(odd), StatusIs(absl::StatusCode::kUnknown, HasSubstr("odd")));
}

TEST(GrpcStatus, LongMessagesAreCut) {
  const absl::Status status = absl::InternalError(std::string(100'000, 'x'));
  EXPECT_EQ(ToGrpcStatus(status).error_message().size(), 2048u);
}

TEST(Address, ReadsHostAndPort) {
  ASSERT_OK_AND_ASSIGN(const HostPort v4, ParseHostPort("127.0.0.1:8080"));
  EXPECT_EQ(v4.host, "127.0.0.1");
  EXPECT_EQ(v4.port, 8080);
  ASSERT_OK_AND_ASSIGN(const HostPort v6, ParseHostPort("[::1]:0"));
  EXPECT_EQ(v6.host, "::1");
  EXPECT_EQ(FormatHostPort(v6.host, 5), "[::1]:5");
  EXPECT_EQ(FormatHostPort(v4.host, 5), "127.0.0.1:5");
}

TEST(Address, RefusesWhatIsNone) {
  for (const char* bad : {"", "localhost", ":80", "localhost:", "localhost:x", "localhost:65536",
                          "localhost:-1", "::1:80", "[]:1"}) {
    EXPECT_THAT(ParseHostPort(bad), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(bad)))
        << bad;
  }
}

}  // namespace
}  // namespace conclave
