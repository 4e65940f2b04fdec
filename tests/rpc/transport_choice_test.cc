#include "rpc/transport_choice.h"

#include "tests/support/fake_nccl.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using Nccl = TransportChoice::Nccl;

TEST(TransportChoiceTest, WhatEachFlagAllows) {
  const struct {
    const char* expert_transport;
    const char* shared_memory;
    bool memory;
    Nccl nccl;
  } cases[] = {
      {"auto", "auto", true, Nccl::kAuto},         {"nccl", "auto", true, Nccl::kRequired},
      {"shared_memory", "auto", true, Nccl::kOff}, {"grpc", "auto", false, Nccl::kOff},
      {"auto", "off", false, Nccl::kOff},          {"grpc", "off", false, Nccl::kOff},
  };
  for (const auto& c : cases) {
    ASSERT_OK_AND_ASSIGN(const TransportChoice choice,
                         ChooseTransports(c.expert_transport, c.shared_memory));
    EXPECT_EQ(choice.shared_memory, c.memory) << c.expert_transport << " " << c.shared_memory;
    EXPECT_EQ(choice.nccl, c.nccl) << c.expert_transport << " " << c.shared_memory;
  }
}

TEST(TransportChoiceTest, WhatContradictsItselfIsRefused) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(ChooseTransports("nccl", "off"), StatusIs(kInvalid));
  EXPECT_THAT(ChooseTransports("shared_memory", "off"), StatusIs(kInvalid));
  EXPECT_THAT(ChooseTransports("tcp", "auto"),
              StatusIs(kInvalid, testing::HasSubstr("--expert_transport is tcp, want auto")));
  EXPECT_THAT(ChooseTransports("auto", "on"), StatusIs(kInvalid));
}

TEST(TransportChoiceTest, NcclThatCannotBeHadIsAnErrorOnlyIfItMustBe) {
  const auto none = []() -> absl::StatusOr<std::unique_ptr<NcclApi>> {
    return absl::FailedPreconditionError("no GPU");
  };
  ASSERT_OK_AND_ASSIGN(auto off, OpenNcclTransport(Nccl::kOff, nullptr));
  EXPECT_EQ(off, nullptr);
  ASSERT_OK_AND_ASSIGN(auto wished, OpenNcclTransport(Nccl::kAuto, none));
  EXPECT_EQ(wished, nullptr);
  EXPECT_THAT(OpenNcclTransport(Nccl::kRequired, none).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, "no GPU"));
  EXPECT_THAT(OpenNcclTransport(Nccl::kRequired, nullptr).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  FakeNcclFabric fabric;
  ASSERT_OK_AND_ASSIGN(
      const auto opened, OpenNcclTransport(Nccl::kRequired, [&] {
        return absl::StatusOr<std::unique_ptr<NcclApi>>(std::make_unique<FakeNccl>(&fabric));
      }));
  EXPECT_EQ(opened->api().version(), 22809);
}

}  // namespace
}  // namespace conclave
