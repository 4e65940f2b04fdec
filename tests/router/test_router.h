#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "proto/conclave/v1/inference.grpc.pb.h"
#include "router/inference_service.h"
#include "router/request_engine.h"
#include "router/router_metrics.h"
#include "router/worker_pool.h"
#include "rpc/server_runner.h"
#include "tests/router/fake_worker.h"
#include "tests/router/test_model.h"

namespace conclave {

// A router in this process behind real gRPC, as main.cc puts it together.
struct TestRouterOptions {
  TestRouterOptions();
  const ServedModel* model = &TestModel();
  WorkerPoolOptions pool;       // polls every 5 ms
  RequestEngineOptions engine;  // waits short or generous, never the defaults
};

class TestRouter {
 public:
  // Returns when as many workers are up as there are in `workers`.
  explicit TestRouter(const std::vector<FakeWorker*>& workers, TestRouterOptions options = {});
  ~TestRouter();

  v1::Inference::Stub& stub() { return *stub_; }
  RequestEngine& engine() { return *engine_; }
  WorkerPool& pool() { return *pool_; }
  ServerRunner& server() { return *server_; }
  std::string metrics() const { return metrics_.Text(); }
  // Of the line `name{labels} value` or `name value`; 0 if there is none.
  double Metric(absl::string_view name_and_labels) const;
  v1::ClusterStatus Cluster();
  bool WaitForWorkersUp(int count);

 private:
  Metrics metrics_;
  std::unique_ptr<RouterMetrics> router_metrics_;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<RequestEngine> engine_;
  std::unique_ptr<InferenceService> service_;
  std::unique_ptr<ServerRunner> server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

// Asks until it is so, at most 20 s: for what the other side has no event for.
bool Eventually(absl::FunctionRef<bool()> condition);

// One Chat or Generate from the client's side.
template <typename Event>
class Call {
 public:
  // Reads the next event; false at the end.
  bool Read(Event* event) { return reader->Read(event); }
  grpc::Status Finish() { return reader->Finish(); }

  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<Event>> reader;
};
using ChatCall = Call<v1::ChatEvent>;
using GenerateCall = Call<v1::GenerateEvent>;

std::unique_ptr<ChatCall> StartChat(TestRouter& router, const v1::ChatRequest& request,
                                    absl::Duration deadline = absl::Seconds(30));
std::unique_ptr<GenerateCall> StartGenerate(TestRouter& router, const v1::GenerateRequest& request,
                                            absl::Duration deadline = absl::Seconds(30));

// A whole stream, put together.
struct Transcript {
  std::vector<std::string> kinds;  // of the events, repeats of deltas merged
  v1::Started started;
  std::string thinking;
  std::string content;
  std::vector<v1::ThinkingDone> thinking_done;
  std::vector<v1::ToolCallDelta> tool_calls;
  std::vector<uint32_t> ids;  // of all deltas
  std::vector<float> logprobs;
  std::vector<float> prompt_logprobs;
  v1::Finished finished;
  absl::Status status;
  absl::Duration retry_after;  // zero: not given
};
void Add(const v1::ChatEvent& event, Transcript* transcript);
void Add(const v1::GenerateEvent& event, Transcript* transcript);
// Reads to the end.
Transcript ReadAll(ChatCall& call);
Transcript ReadAll(GenerateCall& call);
Transcript RunChat(TestRouter& router, const v1::ChatRequest& request);
Transcript RunGenerate(TestRouter& router, const v1::GenerateRequest& request);

v1::ChatRequest UserSays(absl::string_view text);
v1::GenerateRequest Complete(absl::string_view text);
absl::Status SendControl(TestRouter& router, const v1::ControlRequest& request);

}  // namespace conclave
