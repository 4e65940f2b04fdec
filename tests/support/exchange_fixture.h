#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/clock.h"
#include "tests/support/exchange_step.h"
#include "worker/grpc_expert_exchange.h"

namespace conclave {

// How long tests of exchanges wait for what must come; a crowded machine under a sanitizer is slow.
inline constexpr absl::Duration kPatience = absl::Seconds(60);

// Until `wanted` holds; false after kPatience. For state that nothing can be waited on.
inline bool Await(absl::FunctionRef<bool()> wanted) {
  for (const absl::Time give_up = absl::Now() + kPatience; absl::Now() < give_up;) {
    if (wanted()) return true;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return false;
}

// Exchanges of one tiny model with shards of a test.
class ExchangeFixture : public testing::Test {
 protected:
  static void SetUpTestSuite() { model_ = new TestModel(TinyMoeConfig()); }
  static void TearDownTestSuite() { delete model_; }

  static Rows Expected(const ExchangeStep& step) { return RunInProcess(*model_, step); }

  static GrpcExpertExchangeOptions Options(std::vector<std::string> shards) {
    GrpcExpertExchangeOptions options;
    options.shards = std::move(shards);
    options.fingerprint = model_->fingerprint();
    options.config = model_->config();
    return options;
  }

  // Connected to shards that hold every expert between them and the `local` ones.
  std::unique_ptr<GrpcExpertExchange> Connect(GrpcExpertExchangeOptions options,
                                              const std::vector<int>& local = {}) {
    auto exchange = std::make_unique<GrpcExpertExchange>(
        std::move(options), local.empty() ? nullptr : model_->LoadRunner(local), &metrics_);
    EXPECT_OK(exchange->AwaitReady(absl::Now() + kPatience));
    return exchange;
  }

  // The same, and to every shard by that way.
  std::unique_ptr<GrpcExpertExchange> ConnectBy(const std::string& transport,
                                                GrpcExpertExchangeOptions options) {
    auto exchange = Connect(std::move(options));
    EXPECT_TRUE(Await([&] { return AllBy(*exchange, transport); })) << transport;
    return exchange;
  }

  static bool AllBy(GrpcExpertExchange& exchange, const std::string& transport) {
    for (const v1::ShardState& shard : exchange.Shards()) {
      if (shard.transport() != transport) return false;
    }
    return true;
  }

  // Until every shard of `exchange` is up (or one is not).
  static bool AwaitUp(GrpcExpertExchange& exchange, bool all_up) {
    return Await([&] {
      bool up = true;
      for (const v1::ShardState& shard : exchange.Shards()) up = up && shard.up();
      return up == all_up;
    });
  }

  // Dispatches that were sent again.
  static uint64_t Retries(GrpcExpertExchange& exchange) {
    uint64_t retries = 0;
    for (const v1::ShardState& shard : exchange.Shards()) retries += shard.retries();
    return retries;
  }

  inline static TestModel* model_ = nullptr;
  Metrics metrics_;
};

}  // namespace conclave
