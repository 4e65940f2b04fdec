// conclave.v1.Worker over real gRPC: when a caller learns what.

#include "worker/worker_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "rpc/channel.h"
#include "rpc/grpc_status.h"
#include "rpc/server_runner.h"
#include "tests/support/test_worker.h"

namespace conclave {
namespace {

using testing::HasSubstr;

class WorkerServiceTest : public testing::Test {
 protected:
  // One sequence runs, one waits, a third is refused.
  WorkerServiceTest() {
    EXPECT_OK(WriteSyntheticCheckpoint(TinyDenseConfig(), dir_.path() + "/dense"));
    WorkerRuntimeOptions options = SmallWorker(dir_.path() + "/dense");
    options.max_running = 1;
    options.max_waiting = 1;
    worker_ = std::make_unique<TestWorker>(options);
    service_ = std::make_unique<WorkerService>(worker_->runtime().model());
    ServerOptions server;
    server.listen = "127.0.0.1:0";
    server.services = {service_.get()};
    auto started = ServerRunner::Start(server);
    EXPECT_OK(started.status());
    server_ = *std::move(started);
    stub_ = v1::Worker::NewStub(MakeChannel(server_->address()));
  }
  void Load() { service_->SetEngine(&worker_->engine(), nullptr, false); }

  struct Call {
    Call(v1::Worker::Stub& stub, const v1::TokenRequest& request) {
      context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(60)));
      reader = stub.Generate(&context, request);
    }
    absl::Status Finish() { return FromGrpcStatus(reader->Finish()); }

    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::TokenEvent>> reader;
  };

  TempDir dir_;
  std::unique_ptr<TestWorker> worker_;
  std::unique_ptr<WorkerService> service_;
  std::unique_ptr<ServerRunner> server_;
  std::unique_ptr<v1::Worker::Stub> stub_;
};

TEST_F(WorkerServiceTest, AcceptsWithItsInitialMetadataWhileTheRequestStillWaits) {
  Load();
  Call running(*stub_, MakeRequest("running", 3, 4000));
  v1::TokenEvent event;
  ASSERT_TRUE(running.reader->Read(&event));
  EXPECT_TRUE(event.started());
  Call waiting(*stub_, MakeRequest("waiting", 3, 5));
  waiting.reader->WaitForInitialMetadata();
  EXPECT_EQ(worker_->engine().Load().running, 1);

  Call refused(*stub_, MakeRequest("refused", 3, 5));
  EXPECT_FALSE(refused.reader->Read(&event));
  EXPECT_THAT(refused.Finish(), StatusIs(absl::StatusCode::kResourceExhausted));

  running.context.TryCancel();
  EXPECT_THAT(running.Finish(), StatusIs(absl::StatusCode::kCancelled));
  int ids = 0;
  while (waiting.reader->Read(&event)) ids += event.ids_size();
  EXPECT_OK(waiting.Finish());
  EXPECT_EQ(ids, 5);
}

TEST_F(WorkerServiceTest, RefusesWhatItCannotServe) {
  v1::TokenEvent event;
  {
    Call early(*stub_, MakeRequest("a", 3, 5));
    EXPECT_FALSE(early.reader->Read(&event));
    EXPECT_THAT(early.Finish(),
                StatusIs(absl::StatusCode::kUnavailable, HasSubstr("loading its weights")));
  }
  Load();
  v1::TokenRequest wrong = MakeRequest("a", 3, 5);
  wrong.set_prefill_only(true);
  Call call(*stub_, wrong);
  EXPECT_FALSE(call.reader->Read(&event));
  EXPECT_THAT(call.Finish(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("prefill_only")));
}

TEST_F(WorkerServiceTest, APrefillOnlyRequestEndsWithoutAnEvent) {
  Load();
  v1::TokenRequest request = MakeRequest("ahead", 100, 0);
  request.set_prefill_only(true);
  Call ahead(*stub_, request);
  v1::TokenEvent event;
  EXPECT_FALSE(ahead.reader->Read(&event));
  EXPECT_OK(ahead.Finish());
  Call real(*stub_, MakeRequest("real", 100, 2));
  ASSERT_TRUE(real.reader->Read(&event));
  EXPECT_EQ(event.cached_prompt_tokens(), 96u);
  while (real.reader->Read(&event)) continue;
  EXPECT_OK(real.Finish());

  grpc::ClientContext context;
  v1::WorkerDescription description;
  ASSERT_TRUE(stub_->Describe(&context, {}, &description).ok());
  EXPECT_TRUE(description.prefix_cache());
  EXPECT_EQ(description.waiting(), 0u);
}

}  // namespace
}  // namespace conclave
