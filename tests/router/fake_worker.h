#pragma once

#include <grpcpp/server.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/conclave/v1/worker.grpc.pb.h"
#include "worker/thinking_automaton.h"

namespace conclave {

// The id that follows `generated`: what stands in for the model. It sees all ids so far, so that
// an id lost or doubled on the way changes everything after it.
using NextId = std::function<uint32_t(const v1::TokenRequest& request,
                                      const std::vector<uint32_t>& generated)>;

// "<think>" + thinking + "</think>" + answer + "<|im_end|>", wherever thinking is cut short. Give
// an answer that begins with "\n\n", as the early-stop text ends.
NextId ThinkThenAnswer(absl::string_view thinking, absl::string_view answer);
// `text`, in which added tokens are matched, then "<|im_end|>".
NextId Say(absl::string_view text);
// Letters that depend on the prompt, the seed and every id before; never ends by itself.
NextId Ramble();

// A worker process in miniature: real gRPC, the real thinking automaton, a scripted model.
class FakeWorker final : public v1::Worker::Service {
 public:
  FakeWorker();
  ~FakeWorker() override;

  std::string target() const;

  // ---- the script; each may change while requests run ----
  void SetNext(NextId next);
  // Every Generate ends at once with this; OK: none does.
  void RefuseWith(absl::Status status);
  // The next Generate that has generated this many ids in all ends with `status` (OK: silently,
  // in the middle). Once.
  void BreakAfter(int num_ids, absl::Status status);
  // Requests stop when they have generated this many ids, until Continue().
  void PauseAfter(int num_ids);
  void Continue();
  void SetDescription(std::function<void(v1::WorkerDescription&)> change);
  void SetCachedPromptTokens(uint32_t count);

  // ---- what happened; each waits at most 20 s and says whether it came ----
  bool WaitForPaused(int num_requests = 1);
  bool WaitForCancelled(int num_requests = 1);
  bool WaitForControl(int num_calls = 1);
  bool WaitForRequests(int num_requests = 1);
  bool WaitForIdle();
  std::vector<v1::TokenRequest> requests() const;

  // Kills the server: streams break. Start again takes the same port.
  void Stop();
  void Start();

 private:
  struct Running {
    std::unique_ptr<ThinkingAutomaton> automaton;
  };

  grpc::Status Describe(grpc::ServerContext* context, const v1::DescribeWorkerRequest* request,
                        v1::WorkerDescription* response) override;
  grpc::Status Generate(grpc::ServerContext* context, const v1::TokenRequest* request,
                        grpc::ServerWriter<v1::TokenEvent>* writer) override;
  grpc::Status Control(grpc::ServerContext* context, const v1::WorkerControlRequest* request,
                       v1::WorkerControlResponse* response) override;

  grpc::Status Run(grpc::ServerContext& context, const v1::TokenRequest& request,
                   grpc::ServerWriter<v1::TokenEvent>& writer);
  // Blocks while paused at this length. False if the caller has gone.
  bool PassGate(grpc::ServerContext& context, size_t num_generated);
  std::optional<absl::Status> TakeBreak(size_t num_generated);
  bool Await(std::function<bool()> condition) const;

  mutable absl::Mutex mutex_;
  NextId next_ ABSL_GUARDED_BY(mutex_);
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  int break_after_ ABSL_GUARDED_BY(mutex_) = -1;
  absl::Status break_status_ ABSL_GUARDED_BY(mutex_);
  int pause_after_ ABSL_GUARDED_BY(mutex_) = -1;
  uint32_t cached_prompt_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  v1::WorkerDescription description_ ABSL_GUARDED_BY(mutex_);
  int paused_ ABSL_GUARDED_BY(mutex_) = 0;
  int cancelled_ ABSL_GUARDED_BY(mutex_) = 0;
  int controls_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, Running> running_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::TokenRequest> requests_ ABSL_GUARDED_BY(mutex_);
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace conclave
