// The way through shared memory between workers and shards of one host: equal bits, and what comes
// of a peer that dies, drains, refuses or writes nonsense.
#include <cstring>
#include <functional>
#include <thread>

#include "absl/synchronization/notification.h"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"
#include "rpc/shared_memory_link.h"
#include "tests/support/exchange_fixture.h"
#include "tests/support/scripted_shard.h"
#include "worker/local_expert_exchange.h"

namespace conclave {
namespace {

using testing::HasSubstr;

class SharedMemoryExchangeTest : public ExchangeFixture {
 protected:
  std::unique_ptr<GrpcExpertExchange> Connect(GrpcExpertExchangeOptions options,
                                              const std::string& transport = "shared_memory") {
    return ConnectBy(transport, std::move(options));
  }

  double MetricOf(const std::string& name, const std::string& transport) {
    const std::string text = metrics_.Text();
    const std::string line = name + "{transport=\"" + transport + "\"} ";
    const size_t at = text.find(line);
    return at == text.npos ? -1 : std::stod(text.substr(at + line.size()));
  }
};

TEST_F(SharedMemoryExchangeTest, GivesTheBitsOfEveryOtherWay) {
  TestShard a(*model_, {0, 1, 2, 3}), b(*model_, {4, 5, 6, 7});
  const auto by_memory = Connect(Options({a.target(), b.target()}));
  GrpcExpertExchangeOptions off = Options({a.target(), b.target()});
  off.shared_memory = false;
  const auto by_grpc = Connect(std::move(off), "grpc");
  for (const int64_t num_rows : {1, 2, 37, 500}) {
    for (const int layer : {0, 1}) {
      const ExchangeStep step(*model_, layer, num_rows, static_cast<uint64_t>(num_rows + layer));
      const Rows expected = Expected(step);
      ASSERT_OK_AND_ASSIGN(const Rows memory_rows, step.Run(*by_memory));
      ASSERT_OK_AND_ASSIGN(const Rows grpc_rows, step.Run(*by_grpc));
      EXPECT_TRUE(memory_rows == expected);
      EXPECT_TRUE(grpc_rows == expected);
    }
  }
  for (const char* name :
       {"conclave_worker_dispatch_bytes_total", "conclave_worker_combine_bytes_total"}) {
    EXPECT_GT(MetricOf(name, "shared_memory"), 0) << name;
    EXPECT_EQ(MetricOf(name, "grpc"), MetricOf(name, "shared_memory")) << name;
  }
}

TEST_F(SharedMemoryExchangeTest, MoreThanTheRingsHoldGoesThroughThem) {
  TestShard shard(*model_, model_->AllExperts());
  const auto exchange = Connect(Options({shard.target()}));
  const int64_t num_rows =
      static_cast<int64_t>(limits::kSharedRingBytes) * 3 / 2 / (model_->config().hidden_size * 2);
  const ExchangeStep step(*model_, 0, num_rows, 5);
  ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
  EXPECT_TRUE(rows == Expected(step));
  EXPECT_EQ(MetricOf("conclave_worker_dispatch_bytes_total", "grpc"), 0);
}

TEST_F(SharedMemoryExchangeTest, TwoWorkersShareAShard) {
  TestShard shard(*model_, model_->AllExperts());
  std::vector<std::thread> workers;
  for (int worker = 0; worker < 2; ++worker) {
    workers.emplace_back([&, worker] {
      Metrics metrics;
      GrpcExpertExchange exchange(Options({shard.target()}), nullptr, &metrics);
      ASSERT_OK(exchange.AwaitReady(absl::Now() + kPatience));
      ASSERT_TRUE(Await([&] { return AllBy(exchange, "shared_memory"); }));
      for (int i = 0; i < 60; ++i) {
        const ExchangeStep step(*model_, i % 2, 1 + i % 9, static_cast<uint64_t>(worker * 70 + i));
        ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(exchange));
        ASSERT_TRUE(rows == Expected(step));
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
}

TEST_F(SharedMemoryExchangeTest, AShardToldNotToIsReachedByGrpc) {
  TestShard shard(*model_, model_->AllExperts(), /*epoch=*/1, "127.0.0.1:0",
                  /*shared_memory=*/false);
  const auto exchange = Connect(Options({shard.target()}), "grpc");
  const ExchangeStep step(*model_, 0, 3, 1);
  ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
  EXPECT_TRUE(rows == Expected(step));
  EXPECT_TRUE(AllBy(*exchange, "grpc"));
}

TEST_F(SharedMemoryExchangeTest, AShardThatGoesAwayUnderLoadAndReturns) {
  auto shard = std::make_unique<TestShard>(*model_, model_->AllExperts(), /*epoch=*/1);
  const std::string target = shard->target();
  const auto exchange = Connect(Options({target}));
  absl::Notification under_load;
  std::thread killer([&] {
    under_load.WaitForNotification();
    shard.reset();
    shard = std::make_unique<TestShard>(*model_, model_->AllExperts(), /*epoch=*/2, target);
  });
  for (int i = 0; i < 40; ++i) {
    if (i == 10) under_load.Notify();
    const ExchangeStep step(*model_, i % 2, 1 + i % 11, static_cast<uint64_t>(i));
    ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
    ASSERT_TRUE(rows == Expected(step)) << i;
  }
  killer.join();
  EXPECT_TRUE(Await([&] { return AllBy(*exchange, "shared_memory"); })) << "as before";
}

TEST_F(SharedMemoryExchangeTest, ADrainAnswersWhatWasAccepted) {
  TestShard draining(*model_, model_->AllExperts()), other(*model_, model_->AllExperts());
  const auto exchange = Connect(Options({draining.target(), other.target()}));
  std::thread drain([&] {
    draining.service().BeginDrain();
    draining.server().DrainAndStop(kPatience);
  });
  for (int i = 0; i < 30; ++i) {
    const ExchangeStep step(*model_, i % 2, 1 + i % 11, static_cast<uint64_t>(i));
    ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
    ASSERT_TRUE(rows == Expected(step)) << i;
  }
  drain.join();
}

// A worker whose engine never takes what it is sent, and then goes: the shard forgets it.
TEST_F(SharedMemoryExchangeTest, AWorkerThatVanishesLeavesNothingBehind) {
  TestShard shard(*model_, model_->AllExperts());
  {
    const auto exchange = Connect(Options({shard.target()}));
    const ExchangeStep step(*model_, 0, 3, 1);
    ASSERT_OK(step.Run(*exchange));
    ASSERT_THAT(shard.MetricsText(), HasSubstr("conclave_shard_shared_memory_workers 1"));
  }
  EXPECT_TRUE(Await([&] {
    return shard.MetricsText().find("conclave_shard_shared_memory_workers 0") != std::string::npos;
  }));
}

// A worker that is not ours: it offers memory as ours does, and then writes what a test likes.
class RawWorker {
 public:
  explicit RawWorker(const std::string& target)
      : stub_(v1::ExpertShard::NewStub(MakeChannel(target))) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    stream_ = stub_->OpenSharedMemory(&context_);
    absl::StatusOr<SharedMemory> rings = SharedMemory::Create(SharedMemoryLinkBytes());
    EXPECT_OK(rings);
    rings_ = *std::move(rings);
    offer_.set_boot_id(BootId());
    *offer_.mutable_rings() = rings_.region();
    *offer_.mutable_doorbell() = bell_.region();
  }

  v1::SharedMemoryOffer& offer() { return offer_; }
  uint8_t* dispatches() { return rings_.data() + 4096; }
  uint8_t* combines() { return dispatches() + FrameRingBytes(limits::kSharedRingBytes); }

  // False: the shard refused.
  bool Offer() {
    v1::SharedMemoryAnswer answer;
    if (!stream_->Write(offer_) || !stream_->Read(&answer)) return false;
    EXPECT_TRUE(rings_.IsConfirmed(answer.confirmation()));
    absl::StatusOr<std::unique_ptr<Doorbell>> shard_bell = Doorbell::Open(answer.doorbell());
    EXPECT_OK(shard_bell);
    shard_bell_ = *std::move(shard_bell);
    return true;
  }
  void RingShard() { shard_bell_->Ring(); }

  // Waits until the shard ends the call.
  absl::Status End() {
    v1::SharedMemoryAnswer answer;
    EXPECT_FALSE(stream_->Read(&answer));
    return FromGrpcStatus(stream_->Finish());
  }

 private:
  const std::unique_ptr<v1::ExpertShard::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SharedMemoryOffer, v1::SharedMemoryAnswer>> stream_;
  SharedMemory rings_;
  Doorbell bell_;
  v1::SharedMemoryOffer offer_;
  std::unique_ptr<Doorbell> shard_bell_;
};

TEST_F(SharedMemoryExchangeTest, AShardEndsTheWayOfAWorkerThatWritesNonsense) {
  TestShard shard(*model_, model_->AllExperts());
  using Spoil = std::function<void(FrameRingControl&, uint64_t * first_frame)>;
  const std::vector<Spoil> spoils = {
      [](auto& control, uint64_t*) { control.written = ~uint64_t{0}; },
      [](auto& control, uint64_t*) { control.written = 65; },
      [](auto& control, uint64_t*) { control.written = 2 * limits::kSharedRingBytes; },
      [](auto& control, uint64_t*) { control.written = 64; },  // a frame of no kind
      [](auto& control, uint64_t* frame) {
        frame[0] = 10 | uint64_t{1} << 60, frame[1] = 1;
        control.written = 128;
      },
      [](auto& control, uint64_t* frame) {  // a header that is no protobuf
        frame[0] = 8, frame[1] = 1, frame[2] = ~uint64_t{0};
        control.written = 64;
      },
  };
  for (const Spoil& spoil : spoils) {
    RawWorker worker(shard.target());
    ASSERT_TRUE(worker.Offer());
    spoil(*reinterpret_cast<FrameRingControl*>(worker.dispatches()),
          reinterpret_cast<uint64_t*>(worker.dispatches() + sizeof(FrameRingControl)));
    worker.RingShard();
    const absl::Status status = worker.End();
    EXPECT_TRUE(absl::IsDataLoss(status) || absl::IsInvalidArgument(status)) << status;
  }
  const auto exchange = Connect(Options({shard.target()}));  // it serves the others as ever
  const ExchangeStep step(*model_, 0, 3, 1);
  ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
  EXPECT_TRUE(rows == Expected(step));
}

TEST_F(SharedMemoryExchangeTest, AnAnswerThatCannotBeWrittenEndsTheWay) {
  TestShard shard(*model_, model_->AllExperts());
  RawWorker worker(shard.target());
  ASSERT_TRUE(worker.Offer());
  v1::ExpertDispatch header;
  header.set_placement_epoch(1);
  header.set_num_rows(1);
  header.add_pair_rows(0);
  header.add_pair_experts(0);
  FrameRingWriter writer(worker.dispatches(), limits::kSharedRingBytes);
  const size_t row_bytes = static_cast<size_t>(model_->config().hidden_size) * 2;
  ASSERT_OK_AND_ASSIGN(uint8_t * row, writer.Begin(header.SerializeAsString(), row_bytes));
  std::memset(row, 0, row_bytes);
  reinterpret_cast<FrameRingControl*>(worker.combines())->read = uint64_t{1} << 40;
  writer.Publish();
  worker.RingShard();
  EXPECT_THAT(worker.End(), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(SharedMemoryExchangeTest, OffersThatMakeNoSenseAreRefused) {
  TestShard shard(*model_, model_->AllExperts());
  const auto refused = [&](const char* why,
                           const std::function<void(v1::SharedMemoryOffer&)>& spoil) {
    RawWorker worker(shard.target());
    spoil(worker.offer());
    EXPECT_FALSE(worker.Offer());
    EXPECT_THAT(worker.End(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(why)));
  };
  refused("another host", [](auto& offer) { offer.set_boot_id("somewhere else"); });
  refused("another host", [](auto& offer) { offer.clear_boot_id(); });
  refused("first bytes", [](auto& offer) { offer.mutable_rings()->set_nonce(1); });
  refused("want", [](auto& offer) { offer.mutable_rings()->set_bytes(4096); });
  refused("want", [](auto& offer) { offer.mutable_rings()->set_bytes(uint64_t{1} << 50); });
  refused("first bytes", [](auto& offer) { offer.mutable_doorbell()->set_nonce(1); });
  refused("No such", [](auto& offer) { offer.mutable_doorbell()->set_fd(1u << 30); });
}

// A shard that agrees to shared memory, misbehaves there at the first dispatch, and is well by
// gRPC.
class FickleShard : public ScriptedShard {
 public:
  using Misdeed = std::function<void(FrameRingControl&, uint64_t* first_frame)>;

  FickleShard(TestModel& model, Misdeed misdeed)
      : ScriptedShard(model, model.AllExperts()), misdeed_(std::move(misdeed)) {}
  ~FickleShard() override { StopServer(); }

  grpc::Status OpenSharedMemory(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::SharedMemoryAnswer, v1::SharedMemoryOffer>* stream) override {
    v1::SharedMemoryOffer offer;
    if (!stream->Read(&offer)) return grpc::Status::CANCELLED;
    absl::StatusOr<SharedMemory> rings = SharedMemory::Open(offer.rings(), SharedMemoryLinkBytes());
    EXPECT_OK(rings);
    absl::StatusOr<std::unique_ptr<Doorbell>> worker_bell = Doorbell::Open(offer.doorbell());
    EXPECT_OK(worker_bell);
    v1::SharedMemoryAnswer answer;
    answer.set_confirmation(rings->Confirm());
    *answer.mutable_doorbell() = bell_.region();
    stream->Write(answer);
    while (bell_.rings() == 0 && !context->IsCancelled()) {
      bell_.Wait(0, absl::Now() + absl::Milliseconds(50));
    }
    if (misdeed_ == nullptr) return grpc::Status(grpc::UNAVAILABLE, "as if killed");
    uint8_t* const combines = rings->data() + 4096 + FrameRingBytes(limits::kSharedRingBytes);
    misdeed_(*reinterpret_cast<FrameRingControl*>(combines),
             reinterpret_cast<uint64_t*>(combines + sizeof(FrameRingControl)));
    (*worker_bell)->Ring();
    EXPECT_FALSE(stream->Read(&offer)) << "the worker ends it";
    return grpc::Status::OK;
  }

 private:
  const Misdeed misdeed_;
  Doorbell bell_;
};

TEST_F(SharedMemoryExchangeTest, AShardThatBreaksTheMemoryIsAskedOverGrpc) {
  const std::vector<FickleShard::Misdeed> misdeeds = {
      nullptr,  // it ends, with the dispatch in the ring
      [](auto& control, uint64_t*) { control.written = 64; },
      [](auto& control, uint64_t*) { control.written = ~uint64_t{0}; },
      [](auto& control, uint64_t* frame) {
        frame[0] = uint64_t{1} << 40, frame[1] = 1;
        control.written = 64;
      },
      [](auto& control, uint64_t* frame) {
        frame[0] = 8, frame[1] = 1, frame[2] = ~uint64_t{0};
        control.written = 64;
      },
  };
  for (size_t i = 0; i < misdeeds.size(); ++i) {
    FickleShard shard(*model_, misdeeds[i]);
    const auto exchange = Connect(Options({shard.target()}));
    const ExchangeStep step(*model_, 1, 20, i);
    ASSERT_OK_AND_ASSIGN(const Rows rows, step.Run(*exchange));
    EXPECT_TRUE(rows == Expected(step)) << i;
    EXPECT_TRUE(AllBy(*exchange, "grpc")) << i;
    EXPECT_EQ(exchange->Shards()[0].retries(), 1u) << i;
    EXPECT_EQ(shard.dispatches(), 1) << i;
  }
}

TEST_F(SharedMemoryExchangeTest, TheLinkOfABrokenPeerFailsWithoutHarm) {
  Doorbell worker_bell, shard_bell;
  BufferPool pool(1 << 20);
  ASSERT_OK_AND_ASSIGN(SharedMemory rings, SharedMemory::Create(SharedMemoryLinkBytes()));
  ASSERT_OK_AND_ASSIGN(SharedMemory shard_rings,
                       SharedMemory::Open(rings.region(), SharedMemoryLinkBytes()));
  uint8_t* const memory = shard_rings.data();
  ASSERT_OK_AND_ASSIGN(auto bell, Doorbell::Open(shard_bell.region()));
  SharedMemoryLink link(SharedMemoryLink::Side::kWorker, std::move(rings), std::move(bell), &pool);
  const auto none = [](const std::string&, absl::Span<const uint8_t>) { return absl::OkStatus(); };
  ASSERT_OK(link.Poll(10, none));
  auto* dispatches = reinterpret_cast<FrameRingControl*>(memory + 4096);
  auto* combines =
      reinterpret_cast<FrameRingControl*>(memory + 4096 + FrameRingBytes(limits::kSharedRingBytes));
  combines->written = 64;
  EXPECT_THAT(link.Poll(10, none), StatusIs(absl::StatusCode::kDataLoss));
  dispatches->read = 1 << 30;
  EXPECT_THAT(link.Send(v1::ExpertDispatch(), {}), StatusIs(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace conclave
