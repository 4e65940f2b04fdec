// A device that fails: who learns what, and that the process ends.

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "absl/synchronization/notification.h"
#include "common/errors.h"
#include "expert_shard/cuda/open_cuda_experts.h"
#include "kernels/cuda/emulation/emulator.h"
#include "proto/conclave/v1/worker.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"
#include "tests/support/child_process.h"
#include "tests/support/test_shard.h"
#include "tests/support/test_worker.h"
#include "worker/cuda/open_cuda_decoder.h"

namespace conclave {
namespace {

using testing::HasSubstr;

Qwen3Config Moe() {
  Qwen3Config config = TinyMoeConfig();
  config.head_dim = 32;
  return config;
}

std::string TextOf(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// What grpc.health.v1 says to one that watches; its generated code does not come with gRPC's
// library.
class HealthWatch {
 public:
  explicit HealthWatch(const std::string& target) : stub_(MakeChannel(target)) {
    call_ = stub_.PrepareCall(&context_, "/grpc.health.v1.Health/Watch", &queue_);
    call_->StartCall(this);
    EXPECT_TRUE(Done());
    const grpc::Slice request("");
    call_->WriteLast(grpc::ByteBuffer(&request, 1), {}, this);
    EXPECT_TRUE(Done());
  }
  ~HealthWatch() {
    grpc::Status status;
    call_->Finish(&status, this);
    context_.TryCancel();
    Done();
  }
  // Blocks until it is said, with a deadline: "\x08\x01" is SERVING, "\x08\x02" NOT_SERVING. Empty:
  // the server has gone.
  std::string Next() {
    grpc::ByteBuffer response;
    call_->Read(&response, this);
    std::vector<grpc::Slice> slices;
    if (!Done() || !response.Dump(&slices).ok()) return "";
    std::string bytes;
    for (const grpc::Slice& slice : slices) {
      bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    return bytes;
  }

 private:
  bool Done() {
    void* tag = nullptr;
    bool ok = false;
    const auto deadline = absl::ToChronoTime(absl::Now() + absl::Seconds(60));
    return queue_.AsyncNext(&tag, &ok, deadline) == grpc::CompletionQueue::GOT_EVENT && ok;
  }

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

// A server of the build that runs on the emulator, serving.
class EmulatedProcess {
 public:
  EmulatedProcess(const std::string& program, std::vector<std::string> args)
      : stderr_(dir_.File("stderr")), child_(program, stderr_, Args(std::move(args))) {
    const nlohmann::json listening = child_.NextLine();
    EXPECT_EQ(listening.value("event", ""), "listening") << TextOf(stderr_);
    target_ = listening.value("grpc", "");
    EXPECT_EQ(child_.NextLine().value("event", ""), "ready") << TextOf(stderr_);
  }
  const std::string& target() const { return target_; }
  void FailDevice() { child_.Signal(SIGUSR1); }
  // It must end by itself, with status 1 and the reason as its last line.
  void ExpectFailed() {
    EXPECT_EQ(child_.Wait(), 1) << TextOf(stderr_);
    EXPECT_THAT(TextOf(stderr_), HasSubstr("cudaErrorIllegalAddress"));
  }

 private:
  static std::vector<std::string> Args(std::vector<std::string> args) {
    for (const char* arg : {"--listen", "127.0.0.1:0", "--device", "cuda", "--threads", "1"}) {
      args.push_back(arg);
    }
    return args;
  }

  const TempDir dir_;
  const std::string stderr_;
  ChildProcess child_;
  std::string target_;
};

class DeviceFailureTest : public testing::Test {
 protected:
  static WorkerRuntimeOptions OnDevice(const TestModel& model) {
    WorkerRuntimeOptions options = SmallWorker(model.dir());
    options.device = "cuda";
    options.max_running = 4;
    options.open_device = OpenCudaDecoder;
    return options;
  }
  static std::unique_ptr<ExpertRunner> Experts(const TestModel& model) {
    auto runner = OpenCudaExperts({.device = "cuda",
                                   .config = &model.config(),
                                   .checkpoint = &model.checkpoint(),
                                   .expert_ids = model.AllExperts(),
                                   .say = [](absl::string_view) {}});
    CHECK(runner.ok()) << runner.status();
    return *std::move(runner);
  }
  ~DeviceFailureTest() override { cuda::emulation::FailCalls(false); }
};

TEST_F(DeviceFailureTest, AnEngineEndsWhatIsInFlightAndTakesNothingMore) {
  const TestModel model(Moe());
  absl::Mutex mutex;
  absl::Status told;
  WorkerRuntimeOptions options = OnDevice(model);
  options.on_device_failure = [&](const absl::Status& failure) {
    absl::MutexLock lock(&mutex);
    EXPECT_OK(told) << "told twice";
    told = failure;
  };
  TestWorker worker(options);
  EXPECT_OK(worker.engine().health());
  const auto running = worker.Submit(MakeRequest("running", 5, 1000));
  ASSERT_TRUE(running->WaitForIds(1));
  const auto beside = worker.Submit(MakeRequest("beside", 40, 1000));
  cuda::emulation::FailCalls(true);
  const auto lost =
      StatusIs(absl::StatusCode::kUnavailable, HasSubstr("worker has lost its device and ends"));
  EXPECT_THAT(running->Wait(), lost);
  EXPECT_THAT(beside->Wait(), lost);
  // The failure of a device is known, and does not go away.
  cuda::emulation::FailCalls(false);
  EXPECT_THAT(worker.engine().health(), lost);
  EXPECT_THAT(worker.engine().Submit(MakeRequest("late", 5, 1), absl::InfiniteFuture(),
                                     std::make_shared<CollectingSink>()),
              lost);
  EXPECT_TRUE(worker.engine().AwaitIdle(absl::Now() + absl::Seconds(60)));
  absl::MutexLock lock(&mutex);
  const auto was_told = [&] { return !told.ok(); };
  ASSERT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&was_told), absl::Seconds(60)));
  EXPECT_TRUE(errors::IsDeviceFailure(told)) << told;
}

TEST_F(DeviceFailureTest, AWorkerProcessTurnsUnhealthyAndExits) {
  const TestModel model(Moe());
  EmulatedProcess worker("conclave-worker-emulated",
                         {"--model", model.dir(), "--kv_cache_tokens", "4096"});
  HealthWatch health(worker.target());
  EXPECT_EQ(health.Next(), "\x08\x01");
  const auto stub = v1::Worker::NewStub(MakeChannel(worker.target()));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(120)));
  const auto reader = stub->Generate(&context, MakeRequest("r", 5, 1000));
  v1::TokenEvent event;
  while (event.ids().empty()) ASSERT_TRUE(reader->Read(&event));
  worker.FailDevice();
  while (reader->Read(&event)) EXPECT_EQ(event.finish_reason(), v1::FINISH_REASON_NONE);
  EXPECT_THAT(FromGrpcStatus(reader->Finish()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("cudaErrorIllegalAddress")));
  EXPECT_EQ(health.Next(), "\x08\x02");
  worker.ExpectFailed();
}

TEST_F(DeviceFailureTest, AShardProcessExitsAndAReplicaTakesOver) {
  TestModel model(Moe());
  EmulatedProcess shard("conclave-expert-shard-emulated",
                        {"--model", model.dir(), "--experts", "0-7"});
  TestShard replica(Experts(model), model, model.fingerprint());
  WorkerRuntimeOptions options = OnDevice(model);
  options.shards = {shard.target()};
  const v1::TokenRequest request = MakeRequest("r", 30, 100);
  std::vector<uint32_t> expected;
  {
    TestWorker alone(OnDevice(model));
    expected = alone.Run(request);
  }
  options.shards.push_back(replica.target());
  TestWorker worker(options);
  HealthWatch health(shard.target());
  EXPECT_EQ(health.Next(), "\x08\x01");
  const auto sink = worker.Submit(request);
  ASSERT_TRUE(sink->WaitForIds(10));
  shard.FailDevice();
  EXPECT_OK(sink->Wait());
  EXPECT_EQ(sink->ids(), expected);
  EXPECT_EQ(health.Next(), "\x08\x02");
  shard.ExpectFailed();
}

// What its experts run on is what its attention runs on: a worker ends with either.
TEST_F(DeviceFailureTest, AWorkerThatServesExpertsEndsWithThem) {
  TestModel model(Moe());
  EmulatedProcess server("conclave-worker-emulated", {"--model", model.dir(), "--local_experts",
                                                      "0-7", "--kv_cache_tokens", "4096"});
  WorkerRuntimeOptions options = OnDevice(model);
  options.shards = {server.target()};
  options.shard_wait = absl::ZeroDuration();  // nobody else has them
  TestWorker worker(options);
  const auto sink = worker.Submit(MakeRequest("r", 5, 1000));
  ASSERT_TRUE(sink->WaitForIds(1));
  server.FailDevice();
  EXPECT_THAT(sink->Wait(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("expert")));
  server.ExpectFailed();
}

// A batch's failure that is not the device's is the batch's alone.
TEST_F(DeviceFailureTest, AShardStaysHealthyAfterABadBatch) {
  TestModel model(Moe());
  const auto runner = Experts(model);
  Metrics registry;
  ShardMetrics metrics(&registry, model.config());
  TokenBatcher::Options options;
  int told = 0;
  options.on_device_failure = [&](const absl::Status&) { ++told; };
  TokenBatcher batcher(runner.get(), &metrics, options);
  const auto run = [&](uint32_t row) {
    const auto rows = RandomRows(1, model.config().hidden_size, 3);
    QueuedDispatch dispatch;
    dispatch.frame.header.set_num_rows(1);
    dispatch.frame.header.add_pair_rows(row);
    dispatch.frame.header.add_pair_experts(3);
    dispatch.frame.hidden_states =
        batcher.CopyTensor({reinterpret_cast<const uint8_t*>(rows.data()), rows.size() * 2});
    absl::Status answer;
    absl::Notification done;
    dispatch.done = [&](const absl::StatusOr<DispatchResult>& result) {
      answer = result.status();
      done.Notify();
    };
    const absl::Status submitted = batcher.Submit(std::move(dispatch));
    if (!submitted.ok()) return submitted;
    done.WaitForNotification();
    return answer;
  };
  EXPECT_THAT(run(1), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("want below 1")));
  EXPECT_OK(batcher.health());
  EXPECT_OK(run(0));
  cuda::emulation::FailCalls(true);
  const auto lost = StatusIs(absl::StatusCode::kUnavailable, HasSubstr("has lost its device"));
  EXPECT_THAT(run(0), lost);
  EXPECT_THAT(run(0), lost);  // at the door
  EXPECT_THAT(batcher.health(), lost);
  batcher.Stop();
  EXPECT_EQ(told, 1);
}

}  // namespace
}  // namespace conclave
