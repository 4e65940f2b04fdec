#include "expert_shard/expert_service.h"

#include <grpcpp/generic/generic_stub.h>

#include <map>
#include <thread>

#include "rpc/channel.h"
#include "rpc/grpc_status.h"
#include "tests/support/test_shard.h"

namespace conclave {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr uint64_t kEpoch = 1;

// A client that knows nothing of our frames: plain generated protobuf code.
class PlainStream {
 public:
  explicit PlainStream(const std::string& target)
      : stub_(v1::ExpertShard::NewStub(MakeChannel(target, Traffic::kTensors))) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    context_.set_wait_for_ready(true);
    stream_ = stub_->Forward(&context_);
  }

  bool Write(const v1::ExpertDispatch& dispatch) { return stream_->Write(dispatch); }
  void WritesDone() { stream_->WritesDone(); }
  bool Read(v1::ExpertCombine* combine) { return stream_->Read(combine); }
  absl::Status Finish() { return FromGrpcStatus(stream_->Finish()); }
  void Cancel() { context_.TryCancel(); }

  // All combines of one dispatch.
  std::vector<v1::ExpertCombine> Call(const v1::ExpertDispatch& dispatch) {
    EXPECT_TRUE(Write(dispatch));
    std::vector<v1::ExpertCombine> combines;
    int answered = 0;
    while (answered < dispatch.pair_rows_size()) {
      v1::ExpertCombine combine;
      if (!Read(&combine)) {
        ADD_FAILURE() << "the stream ended: " << Finish();
        break;
      }
      EXPECT_EQ(combine.sequence(), dispatch.sequence());
      combines.push_back(combine);
      if (combine.status_code() != 0) break;
      answered += static_cast<int>(combine.num_pairs());
    }
    return combines;
  }

 private:
  std::unique_ptr<v1::ExpertShard::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ExpertDispatch, v1::ExpertCombine>> stream_;
};

class ExpertServiceTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { model_ = new TestModel(TinyMoeConfig()); }
  static void TearDownTestSuite() { delete model_; }

  // Every row goes to experts 1 and 4.
  static v1::ExpertDispatch MakeDispatch(uint64_t sequence, int64_t num_rows) {
    v1::ExpertDispatch dispatch;
    dispatch.set_sequence(sequence);
    dispatch.set_layer(1);
    dispatch.set_placement_epoch(kEpoch);
    dispatch.set_num_rows(static_cast<uint32_t>(num_rows));
    for (const uint32_t expert : {1u, 4u}) {
      for (int64_t row = 0; row < num_rows; ++row) {
        dispatch.add_pair_rows(static_cast<uint32_t>(row));
        dispatch.add_pair_experts(expert);
      }
    }
    const auto rows = RandomRows(num_rows, model_->config().hidden_size, sequence);
    dispatch.set_hidden_states(rows.data(), rows.size() * sizeof(BFloat16));
    return dispatch;
  }

  static std::string Expected(const v1::ExpertDispatch& dispatch) {
    const auto runner = model_->LoadRunner({1, 4});
    const size_t hidden = model_->config().hidden_size;
    std::vector<BFloat16> rows(dispatch.num_rows() * hidden);
    std::memcpy(rows.data(), dispatch.hidden_states().data(), dispatch.hidden_states().size());
    std::string output(dispatch.pair_rows_size() * hidden * sizeof(BFloat16), '\0');
    EXPECT_OK(runner->Run(static_cast<int>(dispatch.layer()), rows.data(), dispatch.num_rows(),
                          dispatch.pair_rows(), dispatch.pair_experts(),
                          reinterpret_cast<BFloat16*>(output.data())));
    return output;
  }

  static std::string RowsOf(const std::vector<v1::ExpertCombine>& combines) {
    std::string rows;
    uint32_t next = 0;
    for (const v1::ExpertCombine& combine : combines) {
      EXPECT_EQ(combine.status_code(), 0u) << combine.status_message();
      EXPECT_EQ(combine.first_pair(), next);
      next += combine.num_pairs();
      rows += combine.expert_rows();
    }
    return rows;
  }

  static TestModel* model_;
};
TestModel* ExpertServiceTest::model_ = nullptr;

TEST_F(ExpertServiceTest, DescribesItself) {
  TestShard shard(*model_, {1, 4}, kEpoch);
  grpc::ClientContext context;
  v1::ShardDescription description;
  ASSERT_TRUE(v1::ExpertShard::NewStub(MakeChannel(shard.target()))
                  ->Describe(&context, {}, &description)
                  .ok());
  EXPECT_TRUE(description.ready());
  EXPECT_EQ(description.model().fingerprint(), model_->fingerprint());
  EXPECT_EQ(description.model().num_experts(), 8u);
  EXPECT_THAT(description.expert_ids(), testing::ElementsAre(1, 4));
  EXPECT_EQ(description.placement_epoch(), kEpoch);
  EXPECT_EQ(description.dtype(), "bf16");
  EXPECT_EQ(description.weight_bytes(), 2u * 2 * 3 * 64 * 32 * 2);
}

TEST_F(ExpertServiceTest, AnswersPlainProtobufClients) {
  TestShard shard(*model_, {1, 4}, kEpoch);
  PlainStream stream(shard.target());
  for (const int64_t rows : {1, 3, 300}) {
    const auto dispatch = MakeDispatch(static_cast<uint64_t>(rows), rows);
    EXPECT_TRUE(RowsOf(stream.Call(dispatch)) == Expected(dispatch));
  }
  stream.WritesDone();
  EXPECT_OK(stream.Finish());
  EXPECT_THAT(shard.MetricsText(), HasSubstr("conclave_shard_rows_total 608"));
}

TEST_F(ExpertServiceTest, LargeAnswersComeInSeveralFrames) {
  TestShard shard(*model_, {1, 4}, kEpoch);
  PlainStream stream(shard.target());
  // 2.56 MB of rows there, 5.12 MB of results back.
  const auto dispatch = MakeDispatch(1, 20'000);
  const auto combines = stream.Call(dispatch);
  EXPECT_EQ(combines.size(), 2u);
  for (const auto& combine : combines) {
    EXPECT_LE(combine.expert_rows().size(), limits::kMaxExpertFrameBytes);
  }
  EXPECT_TRUE(RowsOf(combines) == Expected(dispatch));
}

TEST_F(ExpertServiceTest, BadDispatchesGetTheirCodeAndTheStreamLivesOn) {
  TestShard shard(*model_, {1, 4}, kEpoch);
  PlainStream stream(shard.target());
  const auto expect_code = [&](grpc::StatusCode code, auto&& spoil) {
    v1::ExpertDispatch dispatch = MakeDispatch(9, 2);
    spoil(dispatch);
    const auto combines = stream.Call(dispatch);
    ASSERT_EQ(combines.size(), 1u);
    EXPECT_EQ(combines[0].status_code(), static_cast<uint32_t>(code));
    EXPECT_NE(combines[0].status_message(), "");
  };
  expect_code(grpc::FAILED_PRECONDITION, [](auto& d) { d.set_placement_epoch(kEpoch + 1); });
  expect_code(grpc::FAILED_PRECONDITION, [](auto& d) { d.set_pair_experts(3, 5); });
  expect_code(grpc::INVALID_ARGUMENT, [](auto& d) { d.set_layer(2); });
  expect_code(grpc::INVALID_ARGUMENT, [](auto& d) { d.set_num_rows(3); });
  expect_code(grpc::INVALID_ARGUMENT, [](auto& d) { d.set_pair_rows(0, 2); });
  expect_code(grpc::INVALID_ARGUMENT, [](auto& d) { d.set_pair_experts(3, 1'000'000); });
  expect_code(grpc::INVALID_ARGUMENT, [](auto& d) { d.set_pair_experts(3, 0); });
  expect_code(grpc::INVALID_ARGUMENT, [](auto& d) { d.add_pair_rows(0); });
  expect_code(grpc::INVALID_ARGUMENT, [](auto& d) { d.mutable_hidden_states()->push_back('x'); });
  expect_code(grpc::INVALID_ARGUMENT, [](auto& d) { d.clear_hidden_states(); });
  const auto dispatch = MakeDispatch(10, 2);
  EXPECT_TRUE(RowsOf(stream.Call(dispatch)) == Expected(dispatch));
  EXPECT_THAT(shard.MetricsText(),
              HasSubstr("conclave_shard_errors_total{code=\"INVALID_ARGUMENT\"} 8"));
}

TEST_F(ExpertServiceTest, BytesThatAreNoDispatchEndTheStream) {
  TestShard shard(*model_, {1, 4}, kEpoch);
  grpc::GenericStub stub(MakeChannel(shard.target()));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
  grpc::CompletionQueue queue;
  void* tag = nullptr;
  bool ok = false;
  auto call = stub.PrepareCall(&context, "/conclave.v1.ExpertShard/Forward", &queue);
  call->StartCall(&call);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  const grpc::Slice garbage("\x7a\xff\xff\xff\x7f no tensor");
  call->Write(grpc::ByteBuffer(&garbage, 1), &call);
  ASSERT_TRUE(queue.Next(&tag, &ok));
  grpc::Status status;
  call->Finish(&status, &call);
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT) << status.error_message();

  PlainStream stream(shard.target());  // the shard itself is well
  const auto dispatch = MakeDispatch(1, 2);
  EXPECT_TRUE(RowsOf(stream.Call(dispatch)) == Expected(dispatch));
}

TEST_F(ExpertServiceTest, ServesSeveralWorkersAtOnce) {
  TestShard shard(*model_, {1, 4}, kEpoch);
  std::vector<std::thread> workers;
  for (int worker = 0; worker < 3; ++worker) {
    workers.emplace_back([&, worker] {
      PlainStream stream(shard.target());
      for (int i = 0; i < 30; ++i) {
        auto dispatch = MakeDispatch(worker * 100 + i, 1 + i % 7);
        dispatch.set_layer((worker + i) % 2);
        ASSERT_TRUE(RowsOf(stream.Call(dispatch)) == Expected(dispatch));
      }
      stream.WritesDone();
      EXPECT_OK(stream.Finish());
    });
  }
  for (std::thread& worker : workers) worker.join();
}

// More dispatches than a shard holds are left in gRPC's buffers until it gets to them: none is
// refused, none is lost.
TEST_F(ExpertServiceTest, PushesBackRatherThanRefuse) {
  TestShard shard(*model_, {1, 4}, kEpoch);
  PlainStream stream(shard.target());
  const int count = 3 * limits::kMaxQueuedFramesPerStream;
  std::thread writer([&] {
    for (int i = 0; i < count; ++i) ASSERT_TRUE(stream.Write(MakeDispatch(i, 2)));
    stream.WritesDone();
  });
  std::map<uint64_t, std::string> rows;
  v1::ExpertCombine combine;
  while (stream.Read(&combine)) {
    ASSERT_EQ(combine.status_code(), 0u) << combine.status_message();
    rows[combine.sequence()] = combine.expert_rows();
  }
  writer.join();
  EXPECT_OK(stream.Finish());
  ASSERT_EQ(rows.size(), static_cast<size_t>(count));
  EXPECT_TRUE(rows[5] == Expected(MakeDispatch(5, 2)));
}

TEST_F(ExpertServiceTest, LeavesNothingBehindWhenAWorkerVanishes) {
  TestShard shard(*model_, {1, 4}, kEpoch);
  {
    PlainStream stream(shard.target());
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(stream.Write(MakeDispatch(i, 100)));
    stream.Cancel();
    EXPECT_FALSE(stream.Finish().ok());
  }
  PlainStream stream(shard.target());
  const auto dispatch = MakeDispatch(1, 2);
  EXPECT_TRUE(RowsOf(stream.Call(dispatch)) == Expected(dispatch));
}

TEST_F(ExpertServiceTest, DrainAnswersWhatItAcceptedAndEndsTheStream) {
  TestShard shard(*model_, {1, 4}, kEpoch);
  PlainStream stream(shard.target());
  const auto dispatch = MakeDispatch(1, 2);
  EXPECT_TRUE(RowsOf(stream.Call(dispatch)) == Expected(dispatch));
  shard.service().BeginDrain();
  v1::ExpertCombine combine;
  EXPECT_FALSE(stream.Read(&combine));
  EXPECT_THAT(stream.Finish(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("draining")));

  PlainStream late(shard.target());
  EXPECT_FALSE(late.Read(&combine));
  EXPECT_THAT(late.Finish(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("draining")));
  grpc::ClientContext context;
  v1::ShardDescription description;
  ASSERT_TRUE(v1::ExpertShard::NewStub(MakeChannel(shard.target()))
                  ->Describe(&context, {}, &description)
                  .ok());
  EXPECT_FALSE(description.ready());
  shard.server().DrainAndStop(kPatience);  // returns at once: no stream is left
  EXPECT_THAT(shard.MetricsText(), HasSubstr("conclave_shard_streams 0"));
}

TEST_F(ExpertServiceTest, SaysSoWhileLoading) {
  Metrics registry;
  ShardMetrics metrics(&registry, model_->config());
  ExpertService service(&metrics);
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.services = {&service};
  ASSERT_OK_AND_ASSIGN(const auto server, ServerRunner::Start(options));
  grpc::ClientContext context;
  v1::ShardDescription description;
  ASSERT_TRUE(v1::ExpertShard::NewStub(MakeChannel(server->address()))
                  ->Describe(&context, {}, &description)
                  .ok());
  EXPECT_FALSE(description.ready());
  PlainStream stream(server->address());
  v1::ExpertCombine combine;
  EXPECT_FALSE(stream.Read(&combine));
  EXPECT_THAT(stream.Finish(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("loading")));
}

}  // namespace
}  // namespace conclave
