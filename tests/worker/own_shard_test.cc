#include <memory>
#include <string>
#include <vector>

#include "tests/support/exchange_fixture.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kOwnEpoch = 7;

// A worker whose list of shards holds itself: as with one name for all of a StatefulSet's pods.
class OwnShardTest : public ExchangeFixture {
 protected:
  std::unique_ptr<GrpcExpertExchange> ConnectAsOwner(const std::vector<std::string>& targets) {
    GrpcExpertExchangeOptions options = Options(targets);
    options.own_placement_epoch = kOwnEpoch;
    return Connect(std::move(options), kLocal);
  }
  bool AwaitListed(GrpcExpertExchange& exchange, size_t count) {
    return Await([&] { return exchange.Shards().size() == count; });
  }

  const std::vector<int> kLocal = {0, 1, 2, 3}, kRest = {4, 5, 6, 7};
};

TEST_F(OwnShardTest, IsLeftAloneAndNotMissed) {
  TestShard own(*model_, kLocal, kOwnEpoch), other(*model_, kRest);
  const auto exchange = ConnectAsOwner({own.target(), other.target()});
  ASSERT_TRUE(AwaitListed(*exchange, 1));
  EXPECT_EQ(exchange->Shards()[0].target(), other.target());
  const ExchangeStep step(*model_, /*layer=*/0, /*num_rows=*/9, /*seed=*/3);
  ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
  EXPECT_TRUE(rows == Expected(step));
  EXPECT_EQ(own.batcher().pairs_computed(), 0);
  EXPECT_OK(exchange->Ready());
  EXPECT_THAT(metrics_.Text(), AllOf(HasSubstr("conclave_worker_shard_up{shard=\"1\"} 1"),
                                     Not(HasSubstr("shard_up{shard=\"0\"}")),
                                     HasSubstr("shard_rows_total{shard=\"1\"}"),
                                     Not(HasSubstr("shard_rows_total{shard=\"0\"}"))));
  // It goes on to be known while it drains.
  own.service().BeginDrain();
  EXPECT_OK(exchange->Ready());
  EXPECT_EQ(exchange->Shards().size(), 1u);
}

TEST_F(OwnShardTest, IsNoReasonWhyAnExpertIsMissing) {
  TestShard own(*model_, kLocal, kOwnEpoch);
  auto other = std::make_unique<TestShard>(*model_, kRest);
  const auto exchange = ConnectAsOwner({own.target(), other->target()});
  ASSERT_TRUE(AwaitListed(*exchange, 1));
  const std::string lost = other->target();
  other.reset();
  ASSERT_TRUE(Await([&] { return !exchange->Ready().ok(); }));
  EXPECT_THAT(std::string(exchange->Ready().message()),
              AllOf(HasSubstr("shard " + lost), Not(HasSubstr(own.target()))));
}

TEST_F(OwnShardTest, AnotherProcessAtItsAddressIsAShard) {
  auto own = std::make_unique<TestShard>(*model_, kLocal, kOwnEpoch);
  TestShard other(*model_, kRest);
  const auto exchange = ConnectAsOwner({own->target(), other.target()});
  ASSERT_TRUE(AwaitListed(*exchange, 1));
  const std::string address = own->target();
  own.reset();
  const TestShard stranger(*model_, kLocal, kOwnEpoch + 1, address);
  EXPECT_TRUE(AwaitListed(*exchange, 2));
  EXPECT_TRUE(AwaitUp(*exchange, true));
}

}  // namespace
}  // namespace conclave
