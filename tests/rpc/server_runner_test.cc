#include "rpc/server_runner.h"

#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "proto/conclave/v1/expert_shard.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"
#include "tests/rpc/test_certificate.h"
#include "tests/support/raw_call.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);

// Describe answers at once, or when told to.
class TestService : public v1::ExpertShard::Service {
 public:
  grpc::Status Describe(grpc::ServerContext* context, const v1::DescribeShardRequest*,
                        v1::ShardDescription* response) override {
    if (hold) {
      entered.Notify();
      const auto go = [&] { return release.HasBeenNotified() || context->IsCancelled(); };
      while (!go()) release.WaitForNotificationWithTimeout(absl::Milliseconds(5));
      if (context->IsCancelled()) return grpc::Status::CANCELLED;
    }
    if (overloaded) {
      SetRetryAfter(*context, absl::Milliseconds(1500));
      return ToGrpcStatus(absl::ResourceExhaustedError("full"));
    }
    response->set_dtype("bf16");
    return grpc::Status::OK;
  }

  std::atomic<bool> hold{false};
  std::atomic<bool> overloaded{false};
  absl::Notification entered, release;
};

absl::StatusOr<std::unique_ptr<ServerRunner>> StartServer(TestService* service,
                                                          const std::string& listen) {
  ServerOptions options;
  options.listen = listen;
  options.services = {service};
  return ServerRunner::Start(options);
}

absl::Status CallDescribe(const std::shared_ptr<grpc::Channel>& channel,
                          grpc::ClientContext* context, bool wait_for_ready = true) {
  context->set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
  context->set_wait_for_ready(wait_for_ready);
  v1::ShardDescription description;
  const grpc::Status status = v1::ExpertShard::NewStub(channel)->Describe(
      context, v1::DescribeShardRequest(), &description);
  if (status.ok()) {
    EXPECT_EQ(description.dtype(), "bf16");
  }
  return FromGrpcStatus(status);
}

absl::Status CallDescribe(const std::shared_ptr<grpc::Channel>& channel,
                          bool wait_for_ready = true) {
  grpc::ClientContext context;
  return CallDescribe(channel, &context, wait_for_ready);
}

TEST(ServerRunner, PicksAPortAndServes) {
  TestService service;
  ASSERT_OK_AND_ASSIGN(const auto server, StartServer(&service, "127.0.0.1:0"));
  EXPECT_GT(server->port(), 0);
  EXPECT_EQ(server->address(), absl::StrCat("127.0.0.1:", server->port()));
  EXPECT_OK(CallDescribe(MakeChannel(server->address())));
  EXPECT_OK(CallDescribe(MakeChannel(server->address(), Traffic::kTensors)));
}

TEST(ServerRunner, ServesOnAUnixSocket) {
  TestService service;
  const TempDir dir;
  const std::string target = absl::StrCat("unix:", dir.File("socket"));
  ASSERT_OK_AND_ASSIGN(const auto server, StartServer(&service, target));
  EXPECT_EQ(server->address(), target);
  EXPECT_EQ(server->port(), 0);
  EXPECT_OK(CallDescribe(MakeChannel(target)));
}

TEST(ServerRunner, HealthFollowsSetServing) {
  TestService service;
  ASSERT_OK_AND_ASSIGN(const auto server, StartServer(&service, "127.0.0.1:0"));
  const auto channel = MakeChannel(server->address());
  EXPECT_EQ(Health(channel), kNotServing);
  server->SetServing(true);
  EXPECT_EQ(Health(channel), kServing);
  server->SetServing(false);
  EXPECT_EQ(Health(channel), kNotServing);
}

TEST(ServerRunner, IsAliveWhetherOrNotItServes) {
  TestService service;
  ASSERT_OK_AND_ASSIGN(const auto server, StartServer(&service, "127.0.0.1:0"));
  const auto channel = MakeChannel(server->address());
  for (const bool serving : {false, true, false}) {
    server->SetServing(serving);
    EXPECT_EQ(Health(channel, kLivenessService), kServing);
  }
}

TEST(ServerRunner, ReflectionListsTheServices) {
  TestService service;
  ASSERT_OK_AND_ASSIGN(const auto server, StartServer(&service, "127.0.0.1:0"));
  // ServerReflectionRequest{list_services: ""}: field 7.
  const std::string answer = CallRaw(
      MakeChannel(server->address()),
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", std::string("\x3a\0", 2));
  EXPECT_THAT(answer, HasSubstr("conclave.v1.ExpertShard"));
  EXPECT_THAT(answer, HasSubstr("grpc.health.v1.Health"));
}

TEST(ServerRunner, PortInUseNamesTheAddress) {
  TestService service, other;
  ASSERT_OK_AND_ASSIGN(const auto server, StartServer(&service, "127.0.0.1:0"));
  EXPECT_THAT(StartServer(&other, server->address()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(server->address())));
}

TEST(ServerRunner, BadAddressesAreRefused) {
  TestService service;
  EXPECT_THAT(StartServer(&service, "nowhere"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nowhere")));
  EXPECT_THAT(StartServer(&service, "192.0.2.1:1"),  // TEST-NET-1: no address of this host
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("192.0.2.1:1")));
}

TEST(ServerRunner, DrainFinishesWhatRunsAndRefusesTheRest) {
  TestService service;
  service.hold = true;
  ASSERT_OK_AND_ASSIGN(const auto server, StartServer(&service, "127.0.0.1:0"));
  server->SetServing(true);
  const auto channel = MakeChannel(server->address());
  absl::Status running;
  std::thread caller([&] { running = CallDescribe(channel); });
  ASSERT_TRUE(service.entered.WaitForNotificationWithTimeout(kPatience));
  std::thread drainer([&] { server->DrainAndStop(kPatience); });
  // The drain has begun when a new connection is refused. A call that the drain meets between its
  // connection and its method ends CANCELLED.
  service.hold = false;
  absl::Status refused;
  const absl::Time give_up = absl::Now() + kPatience;
  do {
    refused = CallDescribe(MakeChannel(server->address()), /*wait_for_ready=*/false);
  } while ((refused.ok() || absl::IsCancelled(refused)) && absl::Now() < give_up);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kUnavailable));
  service.release.Notify();
  caller.join();
  drainer.join();
  EXPECT_OK(running);
}

TEST(ServerRunner, DrainDeadlineCancelsWhatStillRuns) {
  TestService service;
  service.hold = true;
  ASSERT_OK_AND_ASSIGN(const auto server, StartServer(&service, "127.0.0.1:0"));
  absl::Status running;
  std::thread caller([&] { running = CallDescribe(MakeChannel(server->address())); });
  ASSERT_TRUE(service.entered.WaitForNotificationWithTimeout(kPatience));
  server->DrainAndStop(absl::Milliseconds(50));
  caller.join();
  EXPECT_FALSE(running.ok());
}

TEST(ServerRunner, TheAddressIsFreeAfterwards) {
  TestService service;
  std::string address;
  {
    ASSERT_OK_AND_ASSIGN(const auto server, StartServer(&service, "127.0.0.1:0"));
    address = server->address();
    server->DrainAndStop(kPatience);
  }
  TestService next;
  EXPECT_OK(StartServer(&next, address));
}

TEST(Channel, ComesBackAfterAServerReturns) {
  TestService service;
  ASSERT_OK_AND_ASSIGN(auto server, StartServer(&service, "127.0.0.1:0"));
  const std::string address = server->address();
  const auto channel = MakeChannel(address);
  ASSERT_OK(CallDescribe(channel));
  server.reset();
  EXPECT_THAT(CallDescribe(channel, /*wait_for_ready=*/false),
              StatusIs(absl::StatusCode::kUnavailable));
  TestService next;
  ASSERT_OK_AND_ASSIGN(server, StartServer(&next, address));
  const absl::Time start = absl::Now();
  EXPECT_OK(CallDescribe(channel));
  // The longest pause between two attempts is 1 s and up to 20 % of jitter; the rest is for a
  // crowded machine. gRPC's own default would be minutes.
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
}

TEST(RetryAfter, ReachesTheClient) {
  TestService service;
  service.overloaded = true;
  ASSERT_OK_AND_ASSIGN(const auto server, StartServer(&service, "127.0.0.1:0"));
  const auto channel = MakeChannel(server->address());
  grpc::ClientContext context;
  EXPECT_THAT(CallDescribe(channel, &context), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(RetryAfter(context), absl::Milliseconds(1500));
  service.overloaded = false;
  grpc::ClientContext well;
  EXPECT_OK(CallDescribe(channel, &well));
  EXPECT_EQ(RetryAfter(well), std::nullopt);
}

TEST(Tls, OnlyThoseWhoTrustTheCertificateGetThrough) {
  const TempDir dir;
  const std::string prefix = dir.File("tls");
  WriteTestCertificate(prefix + ".crt", prefix + ".key");
  TestService service;
  ServerOptions options;
  options.listen = "localhost:0";
  options.services = {&service};
  options.tls_cert_file = prefix + ".crt";
  options.tls_key_file = prefix + ".key";
  ASSERT_OK_AND_ASSIGN(const auto server, ServerRunner::Start(options));
  ChannelOptions trusting;
  trusting.tls_ca_file = prefix + ".crt";
  ASSERT_OK_AND_ASSIGN(const auto channel, MakeChannel(server->address(), trusting));
  EXPECT_OK(CallDescribe(channel));
  EXPECT_THAT(CallDescribe(MakeChannel(server->address()), /*wait_for_ready=*/false),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST(Tls, BadFilesAreRefused) {
  TestService service;
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.services = {&service};
  options.tls_cert_file = "/nonexistent.crt";
  EXPECT_THAT(ServerRunner::Start(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("want both or neither")));
  options.tls_key_file = "/nonexistent.key";
  EXPECT_THAT(ServerRunner::Start(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("/nonexistent.crt")));
  ChannelOptions channel;
  channel.tls_ca_file = testing::TempDir();  // a directory
  EXPECT_THAT(MakeChannel("localhost:1", channel), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace conclave
