// Dispatches over NCCL, with a stand-in for it: equal bits, and what comes of a peer that hangs,
// fails, dies, restarts or has none.
#include <cmath>
#include <functional>
#include <thread>

#include "absl/synchronization/notification.h"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"
#include "rpc/nccl_link.h"
#include "tests/support/exchange_step.h"
#include "tests/support/fake_nccl.h"
#include "tests/support/test_worker.h"
#include "worker/grpc_expert_exchange.h"

namespace conclave {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);

bool Await(const std::function<bool()>& wanted) {
  for (const absl::Time give_up = absl::Now() + kPatience; absl::Now() < give_up;) {
    if (wanted()) return true;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return false;
}

class NcclExchangeTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { model_ = new TestModel(TinyMoeConfig()); }
  static void TearDownTestSuite() { delete model_; }

  // The lowest of the deadlines is what a hang costs.
  static NcclTransport::Options TransportOptions(absl::Duration timeout = kPatience) {
    NcclTransport::Options options;
    options.frame_bytes = limits::kMinNcclFrameBytes;  // a layer takes many
    options.setup_timeout = timeout;
    options.transfer_timeout = timeout;
    return options;
  }

  std::unique_ptr<NcclTransport> Transport(NcclTransport::Options options = TransportOptions()) {
    return std::make_unique<NcclTransport>(std::make_unique<FakeNccl>(&fabric_), options);
  }

  std::unique_ptr<TestShard> Shard(const std::vector<int>& experts, NcclTransport* nccl,
                                   uint64_t epoch = 1, const std::string& listen = "127.0.0.1:0") {
    return std::make_unique<TestShard>(*model_, experts, epoch, listen, /*shared_memory=*/true,
                                       WeightDtype::kBf16, nccl);
  }

  GrpcExpertExchangeOptions Options(std::vector<std::string> shards, NcclTransport* nccl) {
    GrpcExpertExchangeOptions options;
    options.shards = std::move(shards);
    options.fingerprint = model_->fingerprint();
    options.config = model_->config();
    options.nccl = nccl;
    options.link_retry = absl::Milliseconds(50);
    return options;
  }

  static bool AllBy(GrpcExpertExchange& exchange, const std::string& transport) {
    for (const v1::ShardState& shard : exchange.Shards()) {
      if (shard.transport() != transport) return false;
    }
    return true;
  }

  std::unique_ptr<GrpcExpertExchange> Connect(GrpcExpertExchangeOptions options,
                                              const std::string& transport = "nccl") {
    auto exchange = std::make_unique<GrpcExpertExchange>(std::move(options), nullptr, &metrics_);
    EXPECT_OK(exchange->AwaitReady(absl::Now() + kPatience));
    EXPECT_TRUE(Await([&] { return AllBy(*exchange, transport); })) << transport;
    return exchange;
  }

  void ExpectRightRows(GrpcExpertExchange& exchange, int layer, int64_t num_rows, uint64_t seed) {
    const ExchangeStep step(*model_, layer, num_rows, seed);
    ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(exchange));
    EXPECT_TRUE(rows == RunInProcess(*model_, step)) << "seed " << seed;
  }

  double MetricOf(const std::string& name, const std::string& transport) {
    const std::string text = metrics_.Text();
    const std::string line = name + "{transport=\"" + transport + "\"} ";
    const size_t at = text.find(line);
    return at == text.npos ? -1 : std::stod(text.substr(at + line.size()));
  }

  static TestModel* model_;
  FakeNcclFabric fabric_;
  Metrics metrics_;
};
TestModel* NcclExchangeTest::model_ = nullptr;

TEST_F(NcclExchangeTest, GivesTheBitsOfTheExpertsInProcess) {
  const auto worker_nccl = Transport(), a_nccl = Transport(), b_nccl = Transport();
  const auto a = Shard({0, 1, 2, 3}, a_nccl.get()), b = Shard({4, 5, 6, 7}, b_nccl.get());
  const auto exchange = Connect(Options({a->target(), b->target()}, worker_nccl.get()));
  for (const int64_t num_rows : {1, 2, 37, 500}) {
    for (const int layer : {0, 1}) {
      ExpectRightRows(*exchange, layer, num_rows, static_cast<uint64_t>(num_rows + layer));
    }
  }
  EXPECT_THAT(a->MetricsText(), HasSubstr("conclave_shard_nccl_workers 1"));
  EXPECT_GT(fabric_.transfers(), 100);
  for (const char* name :
       {"conclave_worker_dispatch_bytes_total", "conclave_worker_combine_bytes_total"}) {
    EXPECT_GT(MetricOf(name, "nccl"), 0) << name;
  }
  EXPECT_EQ(MetricOf("conclave_worker_dispatch_retries_total", "nccl"), 0);
}

TEST_F(NcclExchangeTest, TwoWorkersShareAShardByCommunicatorsOfTheirOwn) {
  const auto shard_nccl = Transport();
  const auto shard = Shard(model_->AllExperts(), shard_nccl.get());
  std::vector<std::thread> workers;
  for (int worker = 0; worker < 2; ++worker) {
    workers.emplace_back([&, worker] {
      const auto nccl = Transport();
      Metrics metrics;
      GrpcExpertExchange exchange(Options({shard->target()}, nccl.get()), nullptr, &metrics);
      ASSERT_OK(exchange.AwaitReady(absl::Now() + kPatience));
      ASSERT_TRUE(Await([&] { return AllBy(exchange, "nccl"); }));
      for (int i = 0; i < 30; ++i) {
        ExpectRightRows(exchange, i % 2, 1 + i % 9, static_cast<uint64_t>(worker * 70 + i));
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  EXPECT_TRUE(Await([&] {
    return shard->MetricsText().find("conclave_shard_nccl_workers 0") != std::string::npos;
  })) << "a worker that goes leaves nothing behind";
}

TEST_F(NcclExchangeTest, AShardWithoutNcclIsReachedByTheNextBestWay) {
  const auto nccl = Transport();
  const auto shard = Shard(model_->AllExperts(), nullptr);
  const auto by_memory = Connect(Options({shard->target()}, nccl.get()), "shared_memory");
  ExpectRightRows(*by_memory, 0, 3, 1);
  GrpcExpertExchangeOptions options = Options({shard->target()}, nccl.get());
  options.shared_memory = false;
  const auto by_grpc = Connect(std::move(options), "grpc");
  ExpectRightRows(*by_grpc, 0, 3, 1);
  EXPECT_EQ(fabric_.transfers(), 0);
}

// NCCL fails in the middle of a layer, at each of its first transfers in turn: what was not
// answered goes another way, and NCCL is used again later.
TEST_F(NcclExchangeTest, AFailureInTheMiddleOfALayerChangesNoBit) {
  const auto worker_nccl = Transport(), shard_nccl = Transport();
  const auto shard = Shard(model_->AllExperts(), shard_nccl.get());
  const auto exchange = Connect(Options({shard->target()}, worker_nccl.get()));
  for (int64_t transfers = 0; transfers < 6; ++transfers) {
    const uint64_t retries = exchange->Shards()[0].retries();
    fabric_.FailAfter(transfers);
    ExpectRightRows(*exchange, static_cast<int>(transfers % 2), 200,
                    static_cast<uint64_t>(transfers));
    EXPECT_GT(exchange->Shards()[0].retries(), retries) << transfers;
    fabric_.FailAfter(FakeNcclFabric::kNever);
    ASSERT_TRUE(Await([&] { return AllBy(*exchange, "nccl"); })) << "again";
  }
  EXPECT_GT(MetricOf("conclave_worker_dispatch_retries_total", "nccl"), 0);
  ExpectRightRows(*exchange, 0, 20, 99);
}

TEST_F(NcclExchangeTest, AReplicaAnswersForAShardWhoseNcclHangs) {
  const auto worker_nccl = Transport(TransportOptions(absl::Seconds(2)));
  const auto shard_nccl = Transport();
  const auto hanging = Shard(model_->AllExperts(), shard_nccl.get());
  const auto replica = Shard(model_->AllExperts(), nullptr);
  GrpcExpertExchangeOptions options =
      Options({hanging->target(), replica->target()}, worker_nccl.get());
  options.shared_memory = false;
  const auto exchange =
      std::make_unique<GrpcExpertExchange>(std::move(options), nullptr, &metrics_);
  ASSERT_OK(exchange->AwaitReady(absl::Now() + kPatience));
  ASSERT_TRUE(Await([&] {
    const auto shards = exchange->Shards();
    return shards[0].transport() == "nccl" && shards[1].transport() == "grpc";
  }));
  fabric_.HangAfter(1);
  ExpectRightRows(*exchange, 0, 300, 1);  // a hang costs its deadline, and nothing else
  EXPECT_GT(exchange->Shards()[0].retries(), 0u);
  EXPECT_EQ(exchange->Shards()[1].retries(), 0u);
}

TEST_F(NcclExchangeTest, AShardThatRestartsIsReachedByNcclAgain) {
  const auto worker_nccl = Transport();
  auto shard_nccl = Transport();
  auto shard = Shard(model_->AllExperts(), shard_nccl.get());
  const std::string target = shard->target();
  const auto exchange = Connect(Options({target}, worker_nccl.get()));
  absl::Notification under_load;
  std::thread killer([&] {
    under_load.WaitForNotification();
    shard.reset();
    shard_nccl = Transport();
    shard = Shard(model_->AllExperts(), shard_nccl.get(), /*epoch=*/2, target);
  });
  for (int i = 0; i < 30; ++i) {
    if (i == 10) under_load.Notify();
    ExpectRightRows(*exchange, i % 2, 1 + i % 11, static_cast<uint64_t>(i));
  }
  killer.join();
  EXPECT_TRUE(Await([&] { return AllBy(*exchange, "nccl"); }));
  ExpectRightRows(*exchange, 0, 100, 77);
}

TEST_F(NcclExchangeTest, ADrainAnswersWhatWasAccepted) {
  const auto worker_nccl = Transport(), a_nccl = Transport(), b_nccl = Transport();
  const auto draining = Shard(model_->AllExperts(), a_nccl.get());
  const auto other = Shard(model_->AllExperts(), b_nccl.get());
  const auto exchange = Connect(Options({draining->target(), other->target()}, worker_nccl.get()));
  std::thread drain([&] {
    draining->service().BeginDrain();
    draining->server().DrainAndStop(kPatience);
  });
  for (int i = 0; i < 30; ++i) {
    ExpectRightRows(*exchange, i % 2, 1 + i % 11, static_cast<uint64_t>(i));
  }
  drain.join();
}

// Setup hangs: frames go by the next best way meanwhile, and by NCCL once it works.
TEST_F(NcclExchangeTest, OneThatDoesNotConnectIsTriedAgain) {
  const auto worker_nccl = Transport(TransportOptions(absl::Milliseconds(200)));
  const auto shard_nccl = Transport();
  const auto shard = Shard(model_->AllExperts(), shard_nccl.get());
  fabric_.HangJoins();
  const auto exchange = Connect(Options({shard->target()}, worker_nccl.get()), "shared_memory");
  ExpectRightRows(*exchange, 0, 30, 1);
  EXPECT_EQ(fabric_.transfers(), 0);
  fabric_.LetJoin();
  EXPECT_TRUE(Await([&] { return AllBy(*exchange, "nccl"); }));
  ExpectRightRows(*exchange, 1, 30, 2);
}

TEST_F(NcclExchangeTest, OneLinksFailureLeavesOtherPairsAlone) {
  FakeNcclFabric other_fabric;  // as on GPUs of their own
  NcclTransport other_worker(std::make_unique<FakeNccl>(&other_fabric), TransportOptions());
  const auto failing_worker = Transport();
  // The shard's side of the second pair is on the fabric of its worker.
  NcclTransport other_shard_nccl(std::make_unique<FakeNccl>(&other_fabric), TransportOptions());
  const auto shard_nccl = Transport();
  const auto a = Shard(model_->AllExperts(), shard_nccl.get());
  const auto b = Shard(model_->AllExperts(), &other_shard_nccl);
  const auto failing = Connect(Options({a->target()}, failing_worker.get()));
  const auto well = Connect(Options({b->target()}, &other_worker));
  fabric_.FailAfter(0);
  ExpectRightRows(*failing, 0, 50, 1);
  ExpectRightRows(*well, 0, 50, 1);
  EXPECT_TRUE(AllBy(*well, "nccl"));
  EXPECT_EQ(well->Shards()[0].retries(), 0u);
}

TEST_F(NcclExchangeTest, AWorkerThatAssumesAnotherPlacementIsRefused) {
  const auto worker_nccl = Transport(), shard_nccl = Transport();
  const auto shard = Shard(model_->AllExperts(), shard_nccl.get(), /*epoch=*/2);
  const NcclPeers stale{model_->fingerprint(), 1, model_->config().hidden_size};
  ASSERT_OK_AND_ASSIGN(const NcclOffering offering,
                       NcclOffering::Make(worker_nccl.get(), stale, /*fp8_dispatches=*/false));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
  const auto stub = v1::ExpertShard::NewStub(MakeChannel(shard->target()));
  const auto stream = stub->OpenNccl(&context);
  ASSERT_TRUE(stream->Write(offering.offer()));
  v1::NcclAnswer answer;
  EXPECT_FALSE(stream->Read(&answer));
  EXPECT_THAT(FromGrpcStatus(stream->Finish()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("placement")));
}

TEST_F(NcclExchangeTest, Fp8RowsAreCloseToBf16) {
  const auto worker_nccl = Transport(), shard_nccl = Transport();
  const auto shard = Shard(model_->AllExperts(), shard_nccl.get());
  GrpcExpertExchangeOptions options = Options({shard->target()}, worker_nccl.get());
  options.nccl_fp8_dispatches = true;
  const auto exchange = Connect(std::move(options));
  const ExchangeStep step(*model_, 0, 64, 3);
  ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
  const Rows exact = RunInProcess(*model_, step);
  ASSERT_EQ(rows.size(), exact.size());
  EXPECT_FALSE(rows == exact);
  double error = 0, norm = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double difference = ToFloat(rows[i]) - ToFloat(exact[i]);
    error += difference * difference;
    norm += static_cast<double>(ToFloat(exact[i])) * ToFloat(exact[i]);
  }
  // Each input is within 1/16 of itself; three products in a row at most triple that.
  EXPECT_LT(std::sqrt(error / norm), 3.0 / 16);
}

// A whole worker: greedy tokens of several requests at once, with NCCL failing on the way.
TEST_F(NcclExchangeTest, TokensAreThoseOfAWorkerWithItsExpertsInProcess) {
  std::vector<v1::TokenRequest> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(MakeRequest(absl::StrCat("request-", i), 3 + 17 * i, 24));
  }
  std::vector<std::vector<uint32_t>> expected;
  {
    TestWorker in_process(SmallWorker(model_->dir()));
    for (const v1::TokenRequest& request : requests) expected.push_back(in_process.Run(request));
  }
  const auto a_nccl = Transport(), b_nccl = Transport();
  const auto a = Shard({0, 1, 2, 3}, a_nccl.get()), b = Shard({4, 5, 6, 7}, b_nccl.get());
  WorkerRuntimeOptions options = SmallWorker(model_->dir());
  options.shards = {a->target(), b->target()};
  options.transports.nccl = TransportChoice::Nccl::kRequired;
  options.open_nccl = [this](const std::string&) -> absl::StatusOr<std::unique_ptr<NcclApi>> {
    return std::make_unique<FakeNccl>(&fabric_);
  };
  TestWorker worker(options);
  const auto by_nccl = [&] {
    for (const v1::ShardState& shard : worker.runtime().experts()->Shards()) {
      if (shard.transport() != "nccl") return false;
    }
    return true;
  };
  for (const bool fails : {false, true}) {
    ASSERT_TRUE(Await(by_nccl));
    if (fails) fabric_.FailAfter(200);
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (const v1::TokenRequest& request : requests) sinks.push_back(worker.Submit(request));
    for (size_t i = 0; i < sinks.size(); ++i) {
      EXPECT_OK(sinks[i]->Wait());
      EXPECT_EQ(sinks[i]->ids(), expected[i]) << i << (fails ? " with a failure" : "");
    }
  }
  EXPECT_GT(fabric_.transfers(), 200) << "the failure came on the way";
}

TEST_F(NcclExchangeTest, AWorkerThatMustHaveNcclDoesNotStartWithoutIt) {
  WorkerRuntimeOptions options = SmallWorker(model_->dir());
  options.shards = {"127.0.0.1:1"};
  options.transports.nccl = TransportChoice::Nccl::kRequired;
  EXPECT_THAT(WorkerRuntime::Open(options).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("without NCCL")));
}

}  // namespace
}  // namespace conclave
